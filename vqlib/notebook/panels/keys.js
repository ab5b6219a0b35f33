// JupyterLab and Notebook 7 read arrow keys before a slider can, to move from cell to cell. They leave alone what has the
// attribute below. So a control gets it when such a key is pressed, and loses it at any other: shortcuts still work.
const MOVES = new Set(["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End", "PageUp", "PageDown"]);

function render({ el }) {
  el.style.display = "none";
  const mark = event => {
    if (!el.closest(".vqlib-panel")?.contains(event.target)) return;
    const plain = !(event.ctrlKey || event.metaKey || event.altKey || event.shiftKey);
    event.target.toggleAttribute("data-lm-suppress-shortcuts", plain && MOVES.has(event.key));
  };
  window.addEventListener("keydown", mark, true); // before the document, where Jupyter listens
  return () => window.removeEventListener("keydown", mark, true);
}

export default { render };
