"""vqlib: the two-stage image generator behind DALL·E 1, in miniature, on Fashion-MNIST.

Data flows one way: ``data -> vqvae -> tokens -> transformer -> sampling``. One module for each notebook
(01 data, 02 vqvae, 03 tokens, 04 transformer, 05 sampling); the others are shared by all of them.
"""

__version__ = "0.1.0"
