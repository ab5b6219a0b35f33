// A picture in equal cells, one of which is marked: by a click, or by the arrow keys once it has the focus.
function render({ model, el }) {
  const [count, columns, unit] = ["count", "columns", "unit"].map(name => model.get(name));
  const grid = document.createElement("div");
  const mark = document.createElement("div");
  grid.append(mark);
  grid.className = "vqlib-grid";
  grid.tabIndex = 0;
  grid.setAttribute("role", "slider"); // what a screen reader should call it: one number, moved by arrow keys
  grid.setAttribute("aria-valuemin", 0);
  grid.setAttribute("aria-valuemax", count - 1);
  Object.assign(grid.style, {
    position: "relative", width: `${columns * unit}px`, height: `${Math.ceil(count / columns) * unit}px`,
    backgroundSize: "100%", imageRendering: "pixelated", cursor: "pointer",
  });
  Object.assign(mark.style, {
    position: "absolute", boxSizing: "border-box", width: `${unit}px`, height: `${unit}px`,
    border: "3px solid #E69F00", pointerEvents: "none",
  });
  const title = document.createElement("div");
  el.replaceChildren(title, grid);

  let url;
  const showPicture = () => {
    const old = url;
    url = URL.createObjectURL(new Blob([model.get("png")], { type: "image/png" }));
    const lines = side => `repeating-linear-gradient(to ${side}, #80808080 0 1px, transparent 1px ${unit}px)`;
    const next = new Image(); // change the background when it can be drawn at once, so that it doesn't flicker
    next.onload = () => {
      grid.style.backgroundImage = `${lines("right")}, ${lines("bottom")}, url(${next.src})`;
      if (old) URL.revokeObjectURL(old);
    };
    next.src = url;
  };
  const showMark = () => {
    const index = model.get("index");
    mark.style.left = `${(index % columns) * unit}px`;
    mark.style.top = `${Math.floor(index / columns) * unit}px`;
    const words = `${model.get("name")} ${index}`;
    title.textContent = `${words} · click, or arrow keys`;
    grid.setAttribute("aria-label", model.get("name"));
    grid.setAttribute("aria-valuenow", index);
    grid.setAttribute("aria-valuetext", words);
  };
  const choose = index => {
    if (index < 0 || index >= count || index === model.get("index")) return;
    model.set("index", index);
    model.save_changes();
  };
  grid.addEventListener("click", event => {
    const box = grid.getBoundingClientRect();
    const [column, row] = [event.clientX - box.left, event.clientY - box.top].map(at => Math.floor(at / unit));
    if (column < columns) choose(row * columns + column);
  });
  grid.addEventListener("keydown", event => {
    const index = model.get("index");
    const row = index - (index % columns);
    const next = {
      ArrowLeft: index - 1, ArrowRight: index + 1, ArrowUp: index - columns, ArrowDown: index + columns,
      Home: row, End: Math.min(row + columns, count) - 1,
    }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    choose(next);
  });
  model.on("change:png", showPicture);
  model.on("change:index", showMark);
  showPicture();
  showMark();
  return () => URL.revokeObjectURL(url);
}

export default { render };
