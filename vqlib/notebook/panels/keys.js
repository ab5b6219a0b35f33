// JupyterLab and Notebook 7 read keys before a slider can: arrows move from cell to cell, "d" pressed twice deletes one.
// They leave alone what has the attribute below. So a control gets it at a plain key, and loses it at any other, such as
// Ctrl+S: those shortcuts still work.
const MOVES = new Set(["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End", "PageUp", "PageDown"]);

function render({ el }) {
  el.style.display = "none";
  const mark = event => {
    if (!el.closest(".vqlib-panel")?.contains(event.target)) return;
    const plain = !(event.ctrlKey || event.metaKey || event.altKey);
    const ours = plain && (MOVES.has(event.key) || event.key.length === 1);
    event.target.toggleAttribute("data-lm-suppress-shortcuts", ours);
  };
  window.addEventListener("keydown", mark, true); // before the document, where Jupyter listens
  return () => window.removeEventListener("keydown", mark, true);
}

export default { render };
