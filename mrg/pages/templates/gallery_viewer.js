// The viewer: the images of a study as large as the screen, with window and level, zoom and pan, next to its reports.
const viewer = { place: -1, first: 0, both: false, active: 0, level: 50, width: 100, invert: false, panes: [] };
const zoom = el("zoom");
const between = (value, low, high) => Math.min(high, Math.max(low, value));

// Grey values from level - width / 2 to level + width / 2 are shown from black to white. Of the two orders of the CSS
// filters, which each limit their result to 0..1, the one is taken whose first step loses nothing that is shown.
function windowed(level, width, invert) {
  const low = level - width / 2;
  const filter = low < 0
    ? `contrast(${1 / (1 - 2 * low)}) brightness(${(1 - 2 * low) / width})`
    : `brightness(${1 / (width + 2 * low)}) contrast(${1 + (2 * low) / width})`;
  return invert ? `${filter} invert(1)` : filter;
}
function paint() {
  for (const pane of viewer.panes) {
    pane.image.style.transform = `translate(${pane.x}px, ${pane.y}px) scale(${pane.scale})`;
    pane.image.style.filter = windowed(viewer.level / 100, viewer.width / 100, viewer.invert);
  }
  el("level").value = viewer.level;
  el("window").value = viewer.width;
  el("invert").setAttribute("aria-pressed", viewer.invert);
  el("both").setAttribute("aria-pressed", viewer.both);
  const pane = viewer.panes[viewer.active];
  el("state").textContent = pane ? `${pane.title}, zoom ${pane.scale.toFixed(1)}×, window ${viewer.width}, level ${viewer.level}` : "";
}
function setWindow(level, width) {
  viewer.level = Math.round(between(level, 1, 99));
  viewer.width = Math.round(between(width, 2, 200));
  paint();
}
// Zoom in on a point of the pane, in pixels from its centre, which stays in place.
function zoomTo(pane, scale, x = 0, y = 0) {
  const next = between(scale, 1, 16);
  pane.x = x - ((x - pane.x) * next) / pane.scale;
  pane.y = y - ((y - pane.y) * next) / pane.scale;
  pane.scale = next;
  move(pane, 0, 0);
}
function move(pane, x, y) {
  const [most, high] = [pane.box.clientWidth, pane.box.clientHeight].map((side) => (side * (pane.scale - 1)) / 2);
  pane.x = between(pane.x + x, -most, most);
  pane.y = between(pane.y + y, -high, high);
  paint();
}
function resetView() {
  for (const pane of viewer.panes) Object.assign(pane, { x: 0, y: 0, scale: 1 });
  viewer.invert = false;
  setWindow(50, 100);
}
function pane(study, number) {
  const view = study.views[number];
  const box = make("div", "pane");
  const title = view.position || `view ${number + 1}`;
  const made = { box, x: 0, y: 0, scale: 1, title, image: make(view.problem ? "div" : "img", "", view.problem) };
  if (!view.problem) {
    made.image.alt = `${title} of study ${study.id}`;
    made.image.draggable = false;
    if (view.link) made.image.src = view.link;
    else source(made.image, `image-${viewer.place}-${number}`);
  }
  box.tabIndex = 0;
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", `${title}, ${number + 1} of ${study.views.length}`);
  box.append(made.image, make("span", "tag", `${title}, ${number + 1} of ${study.views.length}`));
  box.addEventListener("focus", () => {
    viewer.active = viewer.panes.indexOf(made);
    paint();
  });
  gestures(made);
  return made;
}
function gestures(made) {
  const { box } = made;
  const pointers = new Map();
  const inside = (event) => {
    const { left, top, width, height } = box.getBoundingClientRect();
    return [event.clientX - left - width / 2, event.clientY - top - height / 2];
  };
  box.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomTo(made, made.scale * Math.exp(-event.deltaY / 400), ...inside(event));
  }, { passive: false });
  box.addEventListener("dblclick", (event) => (made.scale > 1 ? zoomTo(made, 1) : zoomTo(made, 3, ...inside(event))));
  box.addEventListener("contextmenu", (event) => event.preventDefault());
  box.addEventListener("pointerdown", (event) => {
    box.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
  });
  for (const name of ["pointerup", "pointercancel"]) box.addEventListener(name, (event) => pointers.delete(event.pointerId));
  box.addEventListener("pointermove", (event) => {
    const last = pointers.get(event.pointerId);
    if (!last) return;
    const [x, y] = [event.clientX - last[0], event.clientY - last[1]];
    const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
    if (other) {
      const gap = (at) => Math.hypot(at[0] - other[0], at[1] - other[1]);
      zoomTo(made, (made.scale * gap([event.clientX, event.clientY])) / Math.max(1, gap(last)), ...inside(event));
    } else if (event.buttons & 2 || event.shiftKey) setWindow(viewer.level + y / 4, viewer.width + x / 4);
    else move(made, x, y);
  });
}
// Show the views of a study from number `first` on.
function look(place, first = 0) {
  const study = studies[place];
  if (viewer.place !== place) [viewer.place, viewer.active] = [place, 0];
  viewer.first = study.views.length ? (first + study.views.length) % study.views.length : 0;
  const shown = viewer.both ? study.views.map((_, number) => number) : study.views.length ? [viewer.first] : [];
  viewer.panes = shown.map((number) => pane(study, number));
  viewer.active = Math.min(viewer.active, Math.max(0, viewer.panes.length - 1));
  el("stage").replaceChildren(...viewer.panes.map(({ box }) => box));
  if (!viewer.panes.length) el("stage").append(make("p", "problem", "This study has no images."));
  el("zoom-title").textContent = study.id;
  el("beside").replaceChildren(...(study.indication ? [make("p", "score", `Indication: ${study.indication}`)] : []), reports(study));
  for (const name of ["view", "both"]) el(name).disabled = study.views.length < 2;
  const at = matched.indexOf(study);
  el("back").disabled = at === 0;
  el("on").disabled = at === matched.length - 1;
  paint();
}
function openViewer(place, first = 0) {
  resetView();
  if (!zoom.open) zoom.showModal();
  look(place, first);
  (viewer.panes[0]?.box || el("beside")).focus();
}
function turn(by) {
  step(by);
  if (current >= 0 && current !== viewer.place) look(current);
  (viewer.panes[0]?.box || el("beside")).focus();
}
const actions = {
  view: () => look(viewer.place, viewer.first + 1),
  both: () => {
    viewer.both = !viewer.both;
    look(viewer.place, viewer.first);
    viewer.panes[0]?.box.focus();
  },
  larger: () => viewer.panes[viewer.active] && zoomTo(viewer.panes[viewer.active], viewer.panes[viewer.active].scale * 1.25),
  smaller: () => viewer.panes[viewer.active] && zoomTo(viewer.panes[viewer.active], viewer.panes[viewer.active].scale / 1.25),
  invert: () => {
    viewer.invert = !viewer.invert;
    paint();
  },
  reset: resetView,
  back: () => turn(-1),
  on: () => turn(1),
};
for (const [name, act] of Object.entries(actions)) el(name).addEventListener("click", act);
el("level").addEventListener("input", () => setWindow(Number(el("level").value), viewer.width));
el("window").addEventListener("input", () => setWindow(viewer.level, Number(el("window").value)));
zoom.addEventListener("close", () => {
  const heading = el(`heading-${viewer.place}`);
  if (heading && current === viewer.place) heading.focus();
});
zoom.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const act = { v: "view", b: "both", "+": "larger", "=": "larger", "-": "smaller", i: "invert", r: "reset", 0: "reset", j: "on", n: "on", k: "back", p: "back" }[event.key];
  const arrow = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
  const grey = { "[": [0, -5], "]": [0, 5], ",": [5, 0], ".": [-5, 0] }[event.key];
  const own = viewer.panes[viewer.active];
  if (act) {
    if (!el(act).disabled) actions[act]();
  } else if (grey) setWindow(viewer.level + grey[0], viewer.width + grey[1]);
  else if (arrow && own && own.box === document.activeElement) move(own, 60 * arrow[0], 60 * arrow[1]);
  else return;
  event.preventDefault();
});
