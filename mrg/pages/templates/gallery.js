// The list of studies: pages, the current study, filters, keys and addresses.
function options(select, entries, value) {
  const known = entries.map(([name, text]) => {
    const option = make("option", "", text);
    option.value = name;
    return option;
  });
  select.replaceChildren(...known);
  select.value = value;
}
function refresh(keep) {
  const base = studies.filter(inRange);
  matched = base.filter((study) => hasKind(study, state.kind, state.condition));
  const key = new Map(matched.map((study) => [study, keys[state.sort](study)]));
  matched.sort((a, b) => key.get(a)[0] - key.get(b)[0] || key.get(a)[1] - key.get(b)[1] || a.place - b.place);
  const number = (kind, condition) => base.reduce((sum, study) => sum + hasKind(study, kind, condition), 0);
  options(el("condition"), [["", "any"], ...conditions.map((name, i) => [String(i), `${name} (${number(state.kind, String(i))})`])], state.condition);
  options(el("kind"), kinds.map(([name, text]) => [name, name ? `${text} (${number(name, state.condition)})` : text]), state.kind);
  const place = keep ? matched.indexOf(studies[current]) : -1;
  pinned = linked >= 0 && !matched.includes(studies[linked]) ? linked : -1;
  if (keep && place < 0 && pinned < 0) leave();
  state.page = place >= 0 ? Math.floor(place / state.size) : 0;
  draw();
}
function draw() {
  const first = state.page * state.size;
  const shown = matched.slice(first, first + state.size);
  const cards = shown.map((study) => card(places.get(study.id)));
  if (pinned >= 0) cards.unshift(card(pinned));
  el("studies").classList.toggle("many", cards.length > 100); // then only the studies in view are laid out
  el("studies").replaceChildren(...cards);
  const total = studies.length;
  el("count").textContent = shown.length
    ? `${matched.length === total ? "" : `${matched.length} of `}${total} studies${matched.length > state.size ? `, ${first + 1} to ${first + shown.length} shown` : ""}`
    : `0 of ${total} studies`;
  if (!shown.length) {
    const nothing = make("p", "note", "No study matches these filters. ");
    const button = make("button", "", "Reset filters");
    button.type = "button";
    button.addEventListener("click", () => el("filters").reset());
    nothing.append(button);
    el("studies").append(nothing);
  }
  notice(pinned >= 0 ? `Study ${studies[pinned].id} is shown because the link points to it, although the filters exclude it.` : "");
  pages();
  highlight();
}
function notice(text) {
  el("notice").textContent = text;
  el("notice").hidden = !text;
}
function pages() {
  const last = Math.max(0, Math.ceil(matched.length / state.size) - 1);
  const turn = (text, page) => {
    const button = make("button", "", text);
    button.type = "button";
    button.disabled = page < 0 || page > last;
    button.addEventListener("click", () => {
      state.page = page;
      draw();
      el("bar").scrollIntoView();
    });
    return button;
  };
  const inside = last ? [turn("‹ Previous page", state.page - 1), make("span", "", `Page ${state.page + 1} of ${last + 1}`), turn("Next page ›", state.page + 1)] : [];
  el("pages").replaceChildren(...inside);
}
function highlight() {
  for (const article of document.querySelectorAll(".study.current")) article.classList.remove("current");
  const article = current >= 0 && el(`study-${current}`);
  if (article) article.classList.add("current");
  const at = matched.indexOf(studies[current]);
  el("previous").disabled = !matched.length || at === 0;
  el("next").disabled = !matched.length || at === matched.length - 1;
}
// Make a study the current one: its id in the address, outlined and, on request, scrolled into view.
function select(place, scroll = true) {
  current = place;
  history.replaceState(null, "", `#${encodeURIComponent(studies[place].id)}`);
  const at = matched.indexOf(studies[place]);
  if (at < 0) pinned = place;
  else if (Math.floor(at / state.size) !== state.page) state.page = Math.floor(at / state.size);
  if (!el(`study-${place}`)) draw();
  highlight();
  if (scroll) {
    const show = () => el(`study-${place}`)?.scrollIntoView({ block: "start" });
    show();
    el(`heading-${place}`).focus({ preventScroll: true });
    // The heights of studies out of view are estimates until they are laid out.
    if (el("studies").classList.contains("many")) requestAnimationFrame(() => requestAnimationFrame(show));
  }
}
function leave() {
  current = -1;
  history.replaceState(null, "", location.pathname + location.search);
}
function step(by) {
  if (!matched.length) return;
  linked = -1;
  const at = matched.indexOf(studies[current]);
  const next = at < 0 ? state.page * state.size : at + by;
  if (next >= 0 && next < matched.length) select(places.get(matched[next].id));
}
function follow() {
  let name = location.hash.slice(1);
  if (!name) return;
  try {
    name = decodeURIComponent(name);
  } catch {
    // a stray percent sign: take the name literally
  }
  if (places.has(name)) {
    linked = places.get(name);
    select(linked);
  } else notice(`There is no study ${name} on this page.`);
}

// --- Controls ---
options(el("sort"), orders, state.sort);
for (const name of ["judge", "show", "condition", "kind", "low", "high", "text", "sort", "size"]) {
  const control = el(name);
  if (!control) continue;
  control.addEventListener("input", () => {
    state[name] = ["judge", "size"].includes(name) ? Number(control.value) : control.value.trim();
    refresh(true);
  });
}
el("filters").addEventListener("submit", (event) => event.preventDefault());
el("filters").addEventListener("reset", () => {
  Object.assign(state, { judge: 0, show: "all", condition: "", kind: "", low: "", high: "", text: "", sort: data.sort, size: 20 });
  setTimeout(() => {
    el("sort").value = data.sort;
    refresh(true);
  });
});
for (const button of document.querySelectorAll(".pick")) {
  button.addEventListener("click", () => {
    state.condition = button.dataset.condition;
    refresh(true);
    el("fold").scrollIntoView();
  });
}
el("previous").addEventListener("click", () => step(-1));
el("next").addEventListener("click", () => step(1));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || el("zoom").open) return;
  if (event.target.closest("input, select, textarea, [tabindex='0']")) return;
  const by = { j: 1, ArrowRight: 1, n: 1, k: -1, ArrowLeft: -1, p: -1 }[event.key];
  const opens = event.key === "o" || (event.key === "Enter" && !event.target.closest("a, button, summary"));
  if (by) step(by);
  else if (opens && current >= 0) openViewer(current);
  else if (event.key === "/") el("text").focus();
  else return;
  event.preventDefault();
});
window.addEventListener("hashchange", follow);
el("fold").open = el("marks").open = window.innerWidth > 768; // on a phone they would fill the screen

// --- Print: the studies of this page or, on request, all that the filters leave; scores and legend unfolded ---
let folded = [];
window.addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("header details:not([open]), #marks:not([open])")];
  for (const details of folded) details.open = true;
});
window.addEventListener("afterprint", () => folded.forEach((details) => (details.open = false)));
el("print").addEventListener("click", async () => {
  const { size, page } = state;
  Object.assign(state, { size: 100000, page: 0 });
  draw();
  await Promise.all([...document.querySelectorAll("#studies img")].map((image) => image.decode().catch(() => {})));
  window.print();
  Object.assign(state, { size, page });
  draw();
});
refresh(false);
follow();
