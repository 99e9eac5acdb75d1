// Marking a photograph: paint, box, clicks. Places are in pixels of the photograph; what is drawn is
// sent as lines and points ("input"), and the server makes the mask of it.
const root = element.querySelector(".fs-marker");
const stage = root.querySelector(".fs-stage");
const image = root.querySelector("img");
const canvas = root.querySelector("canvas");
const pen = canvas.getContext("2d");
const OBJECT = 1, REST = 2;
const COLORS = { 1: "rgb(0, 158, 255)", 2: "rgb(230, 60, 60)" };
const HINTS = {
  paint: "Paint over the object. Erase takes paint away.",
  grow: "Draw a few strokes in the object, and some beside it with “Not the object”.",
  box: "Drag a box around the object, or click two opposite corners.",
  click: "Click on the object; with “Not the object”, on what does not belong to it.",
};
let photo = null; // {key, width, height}
let tool = "paint", kind = OBJECT, grow = false;
let strokes = [], points = [], box = null, corner = null, moving = null;

const each = (selector, action) => root.querySelectorAll(selector).forEach(action);
const press = (selector, name, value) =>
  each(selector, (b) => b.setAttribute("aria-pressed", String(b.dataset[name] === String(value))));

function show() {
  press("[data-tool]", "tool", tool);
  press("[data-kind]", "kind", kind);
  root.querySelector("[data-kinds]").hidden = tool === "box";
  root.querySelector("[data-size]").hidden = tool !== "paint";
  root.querySelector("[data-grow]").hidden = tool !== "paint";
  root.querySelector('[data-kind="2"]').textContent =
    tool === "paint" && !grow ? "Erase" : "Not the object";
  root.querySelector(".fs-hint").textContent = HINTS[tool === "paint" && grow ? "grow" : tool];
  draw();
}

// Pixels of the canvas for one of the photograph.
const scale = () => canvas.width / photo.width;

function draw() {
  if (!photo) return;
  const width = image.clientWidth, height = image.clientHeight;
  if (!width || !height) return;
  const density = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * density);
  canvas.height = Math.round(height * density);
  canvas.style.opacity = tool === "paint" ? 0.6 : 1;
  pen.lineCap = pen.lineJoin = "round";
  if (tool === "paint") drawStrokes();
  if (tool === "box") drawBox();
  if (tool === "click") drawPoints();
}

function drawStrokes() {
  for (const stroke of strokes) {
    const erase = stroke.kind === REST && !grow;
    pen.globalCompositeOperation = erase ? "destination-out" : "source-over";
    pen.strokeStyle = pen.fillStyle = COLORS[stroke.kind];
    pen.lineWidth = stroke.width * scale();
    pen.beginPath();
    stroke.places.forEach(([x, y], n) => pen[n ? "lineTo" : "moveTo"](x * scale(), y * scale()));
    if (stroke.places.length === 1) {
      const [x, y] = stroke.places[0];
      pen.arc(x * scale(), y * scale(), pen.lineWidth / 2, 0, 2 * Math.PI);
      pen.fill();
    } else pen.stroke();
  }
  pen.globalCompositeOperation = "source-over";
}

function drawBox() {
  const shown = moving ? [...corner, ...moving] : box;
  const s = scale(), line = 2 * (window.devicePixelRatio || 1);
  pen.lineWidth = line;
  pen.strokeStyle = pen.fillStyle = COLORS[OBJECT];
  if (shown) {
    const [x0, y0, x1, y1] = shown.map((n) => n * s);
    pen.globalAlpha = 0.25;
    pen.fillRect(x0, y0, x1 - x0, y1 - y0);
    pen.globalAlpha = 1;
    pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
  } else if (corner) {
    pen.beginPath();
    pen.arc(corner[0] * s, corner[1] * s, 3 * line, 0, 2 * Math.PI);
    pen.fill();
  }
}

function drawPoints() {
  const radius = 7 * (window.devicePixelRatio || 1);
  for (const [x, y, k] of points) {
    pen.beginPath();
    pen.arc(x * scale(), y * scale(), radius, 0, 2 * Math.PI);
    pen.fillStyle = COLORS[k];
    pen.fill();
    pen.lineWidth = radius / 3;
    pen.strokeStyle = "white";
    pen.stroke();
  }
}

function send() {
  draw();
  if (photo) trigger("input", { photo: photo.key, tool, grow, strokes, box, points });
}

function place(event) {
  const frame = canvas.getBoundingClientRect();
  const part = (at, from, length) => Math.min(Math.max((at - from) / length, 0), 1);
  const x = part(event.clientX, frame.left, frame.width) * photo.width;
  const y = part(event.clientY, frame.top, frame.height) * photo.height;
  return [Math.round(x * 10) / 10, Math.round(y * 10) / 10];
}

// Pixels of the photograph for one of the screen.
const unit = () => photo.width / Math.max(canvas.getBoundingClientRect().width, 1);

canvas.addEventListener("pointerdown", (event) => {
  if (!photo || event.button > 0 || !event.isPrimary) return;
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  const at = place(event);
  if (tool === "paint") {
    const width = Number(root.querySelector("[data-size] input").value) * unit();
    strokes.push({ kind, width: Math.round(width * 10) / 10, places: [at] });
    moving = at;
  } else if (tool === "click") {
    points.push([...at, kind]);
    send();
  } else if (corner) {
    box = [...corner, ...at];
    corner = null;
    send();
  } else {
    [corner, box, moving] = [at, null, at];
  }
  draw();
});

canvas.addEventListener("pointermove", (event) => {
  if (!photo || !moving) return;
  const at = place(event);
  if (tool === "paint") {
    const last = strokes[strokes.length - 1].places;
    const [x, y] = last[last.length - 1];
    if (Math.hypot(at[0] - x, at[1] - y) < 2 * unit()) return;
    last.push(at);
  } else moving = at;
  draw();
});

function release() {
  if (!photo || !moving) return;
  const to = moving;
  moving = null;
  if (tool === "paint") return send();
  if (Math.hypot(to[0] - corner[0], to[1] - corner[1]) > 6 * unit()) {
    box = [...corner, ...to];
    corner = null;
    send();
  } else draw(); // the first of two corners
}
canvas.addEventListener("pointerup", release);
canvas.addEventListener("pointercancel", release);

root.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const data = button.dataset;
  if (data.tool) {
    [tool, corner, moving] = [data.tool, null, null];
    show();
    const marks = tool === "paint" ? strokes.length : tool === "box" ? box : points.length;
    if (marks) send();
  } else if (data.kind) {
    kind = Number(data.kind);
    show();
  } else if ("undo" in data) {
    if (tool === "paint") strokes.pop();
    if (tool === "click") points.pop();
    if (tool === "box") box = corner = null;
    send();
  } else if ("clear" in data) {
    if (tool === "paint") strokes = [];
    if (tool === "click") points = [];
    if (tool === "box") box = corner = null;
    send();
  }
});

root.querySelector("[data-grow] input").addEventListener("change", (event) => {
  grow = event.target.checked;
  show();
  if (strokes.length) send();
});

function load() {
  const next = props.value ? JSON.parse(props.value) : null;
  if (photo && next && photo.key === next.key) return;
  photo = next;
  [strokes, points, box, corner, moving, kind] = [[], [], null, null, null, OBJECT];
  root.hidden = !photo;
  if (photo) stage.style.width = "min(100%, " + 62 * photo.width / photo.height + "vh)";
  if (photo) image.src = "fsdino/picture/" + photo.key;
  else image.removeAttribute("src");
  show();
}

image.addEventListener("load", draw);
new ResizeObserver(draw).observe(image);
watch("value", load);
load();
