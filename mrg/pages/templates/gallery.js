// The gallery's list of studies. All text from data goes through textContent: none of it can become markup.
"use strict";
(() => {
  const el = (id) => document.getElementById(id);
  const data = JSON.parse(el("data").textContent);
  const { conditions, classes, verdicts, errors, systems, studies, hasReference } = data;
  const numFindings = 13; // the last condition, No Finding, is the absence of the others
  const several = systems.length > 1;
  const places = new Map(studies.map((study, place) => [study.id, place]));
  const isStated = (digit) => digit === "1" || digit === "3";
  const percent = (value) => String(Math.round(100 * value));
  const word = { stated: "1", possible: "3", "ruled out": "2" };

  const kinds = hasReference
    ? [["", "any"], ["error", "any error"], ["missed", "missed"], ["invented", "invented"], ["contradicted", "contradicted"],
       ["uncertain", "uncertain"], ["right", "right"], ["clean", "no error"], ["format", "broken format"]]
    : [["", "any"], ["stated", "stated"], ["possible", "possible"], ["ruled out", "ruled out"]];
  if (several && hasReference) {
    kinds.push(["differs", "changed"], ["gained", `gained: right in ${systems[0]} alone`], ["lost", `lost: right in ${systems[1]} alone`]);
  }
  const orders = hasReference
    ? [["worst", "worst first"], ["best", "best first"], ["errors", "most errors first"], ["order", "order of the file"]]
    : [["order", "order of the file"], ["findings", "most findings first"]];
  if (several && hasReference) orders.unshift(["changes", "most changes first"]);

  const state = { judge: 0, show: "all", condition: "", kind: "", low: "", high: "", text: "", sort: data.sort, size: 20, page: 0 };
  let matched = [];
  let current = -1; // place in studies
  let linked = -1; // the study that the address named when the page was opened or the address changed
  let pinned = -1; // that study, where the filters leave it out

  // --- Which studies, in which order ---
  const output = (study) => study.outputs[state.judge];
  const change = (study) => study.outputs[Math.max(1, state.judge)].change;
  const plain = (pieces) => pieces.map((piece) => (typeof piece === "string" ? piece : piece[0])).join("");
  const haystack = (study) => {
    study.search ??= [study.id, study.indication, ...study.outputs.flatMap((o) => [plain(o.report), o.target ? plain(o.target) : "", o.thinking])]
      .join("\n").toLowerCase();
    return study.search;
  };
  const count = (study, wanted) => {
    let found = 0;
    for (let i = 0; i < numFindings; i++) if (wanted(verdicts[output(study).verdicts[i]])) found++;
    return found;
  };
  const numErrors = (study) => count(study, (name) => errors.includes(name));
  const numChanges = (study) => change(study).gained.length + change(study).lost.length;
  const numStated = (study) => [...output(study).labels].slice(0, numFindings).filter(isStated).length;

  function hasKind(study, kind, condition) {
    const own = output(study);
    const at = condition === "" ? -1 : Number(condition);
    if (kind in word) return at < 0 ? own.labels.includes(word[kind]) : own.labels[at] === word[kind];
    if (["gained", "lost", "differs"].includes(kind)) {
      const { gained, lost } = change(study);
      const list = kind === "gained" ? gained : kind === "lost" ? lost : [...gained, ...lost];
      return at < 0 ? list.length > 0 : list.includes(at);
    }
    const isWanted = (name) => (kind === "error" ? errors.includes(name) : name === kind);
    if (["error", "missed", "invented", "contradicted", "uncertain", "right"].includes(kind)) {
      return at < 0 ? count(study, isWanted) > 0 : isWanted(verdicts[own.verdicts[at]]);
    }
    if (at >= 0 && !isStated(own.labels[at]) && !(hasReference && isStated(study.labels[at]))) return false;
    if (kind === "clean") return at < 0 ? numErrors(study) === 0 : !errors.includes(verdicts[own.verdicts[at]]);
    return kind === "format" ? !own.format : true;
  }
  function inRange(study) {
    if (state.text && !state.text.toLowerCase().split(/\s+/).every((part) => haystack(study).includes(part))) return false;
    if (!hasReference) return true;
    const score = 100 * output(study).mccs;
    return !(state.low !== "" && score < Number(state.low)) && !(state.high !== "" && score > Number(state.high));
  }
  const keys = {
    worst: (study) => [output(study).mccs, -numErrors(study)],
    best: (study) => [-output(study).mccs, numErrors(study)],
    errors: (study) => [-numErrors(study), output(study).mccs],
    changes: (study) => [-numChanges(study), -Math.abs(study.outputs[0].mccs - study.outputs[Math.max(1, state.judge)].mccs)],
    findings: (study) => [-numStated(study), 0],
    order: () => [0, 0],
  };

  // --- Elements ---
  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }
  function mark(tag, kind, text, hint) {
    const element = make(tag, `mark ${kind.replace(" ", "-")}`);
    const sign = make("span", "sign");
    sign.setAttribute("aria-hidden", "true");
    element.append(sign, text);
    if (hint) {
      element.title = hint;
      element.append(make("span", "hidden", ` (${hint})`));
    }
    return element;
  }
  function report(pieces, className = "report") {
    const paragraph = make("p", className);
    paragraph.dir = "auto";
    for (const piece of pieces) {
      if (typeof piece === "string") paragraph.append(piece);
      else {
        const [text, marks] = piece;
        const ranks = [...errors, "uncertain", "right"];
        const worst = [...marks].sort((a, b) => ranks.indexOf(a[0]) - ranks.indexOf(b[0]))[0][0];
        paragraph.append(mark("mark", worst, text, marks.map(([kind, at]) => `${kind}: ${conditions[at]}`).join(", ")));
      }
    }
    return paragraph;
  }
  function chips(entries) {
    const list = make("ul", "chips");
    for (const [kind, names] of entries) {
      if (!names.length) continue;
      const item = make("li");
      item.append(mark("span", kind, `${kind}: ${names.join(", ")}`));
      list.append(item);
    }
    return list;
  }
  function summary(study, own) {
    if (!hasReference) {
      const said = chips(["stated", "possible"].map((kind) =>
        [kind, conditions.filter((_, i) => i < numFindings && own.labels[i] === word[kind])]));
      if (!said.children.length) said.append(make("li", "soft", "No finding."));
      return said;
    }
    const list = chips(["missed", "invented", "contradicted", "uncertain", "right"].map((kind) =>
      [kind, conditions.filter((_, i) => i < numFindings && verdicts[own.verdicts[i]] === kind)]));
    if (!list.children.length) list.append(make("li", "soft", "No finding in either report."));
    return list;
  }
  function fold(title, ...children) {
    const details = make("details");
    details.append(make("summary", "", title), ...children);
    return details;
  }
  function generated(study, own, place) {
    const section = make("section");
    section.append(make("h4", "", several ? `Generated: ${systems[place]}` : "Generated"));
    if (hasReference) {
      const score = make("p", "score", "MCCS ");
      score.append(make("b", "", percent(own.mccs)), own.format ? ", format kept" : ", format broken");
      section.append(score);
    }
    section.append(summary(study, own));
    if (own.change && (state.judge === 0 || state.judge === place)) {
      const names = (list) => list.map((at) => conditions[at]);
      const list = chips([["gained", names(own.change.gained)], ["lost", names(own.change.lost)]]);
      for (const item of list.children) item.title = `gained: right in ${systems[0]} alone; lost: right in ${systems[place]} alone`;
      if (list.children.length) section.append(make("p", "score", `${systems[0]}, compared with this:`), list);
    }
    if (own.report.length && plain(own.report).trim()) section.append(report(own.report));
    else {
      section.append(make("p", "soft", own.completion ? "There is no report in what the model wrote." : "The model wrote nothing."));
      if (own.completion) section.append(fold("What it wrote", report([own.completion])));
    }
    if (own.thinking) section.append(fold("Thinking", report([own.thinking])));
    return section;
  }
  function table(study, shown) {
    const grid = make("table");
    const head = make("tr");
    const titles = ["Condition", ...(hasReference ? ["Reference"] : [])];
    for (const place of shown) titles.push(several ? systems[place] : "Generated", ...(hasReference ? ["Verdict"] : []));
    for (const title of titles) {
      const cell = make("th", "", title);
      cell.scope = "col";
      head.append(cell);
    }
    const body = make("tbody");
    conditions.forEach((name, i) => {
      const row = make("tr");
      const first = make("th", "", name);
      first.scope = "row";
      row.append(first);
      if (hasReference) row.append(make("td", "", classes[study.labels[i]]));
      for (const place of shown) {
        const own = study.outputs[place];
        row.append(make("td", "", classes[own.labels[i]]));
        if (!hasReference) continue;
        const cell = make("td");
        const name = verdicts[own.verdicts[i]];
        if (name === "denied") cell.append(make("span", "soft", "both deny it"));
        else if (name !== "silent") cell.append(mark("span", name, name));
        row.append(cell);
      }
      body.append(row);
    });
    const top = make("thead");
    top.append(head);
    grid.append(top, body);
    const wide = make("div", "wide");
    wide.append(grid);
    return wide;
  }
  const waiting = [];
  function source(image, name) {
    const holder = el(name); // the images stand at the end of the file, so that the list is there before them
    if (holder) image.src = `data:image/jpeg;base64,${holder.textContent}`;
    else waiting.push([image, name]);
  }
  document.addEventListener("DOMContentLoaded", () => waiting.splice(0).forEach(([image, name]) => source(image, name)));
  function figure(study, place, view, number) {
    const box = make("figure");
    const title = view.position || `view ${number + 1}`;
    if (view.problem) box.append(make("div", "problem", view.problem));
    else {
      const image = make("img");
      image.alt = `${title} of study ${study.id}`;
      image.decoding = "async";
      if (view.link) {
        image.loading = "lazy";
        image.src = view.link;
        image.addEventListener("error", () => button.replaceWith(make("div", "problem", "The linked image is not there.")));
      } else {
        [image.width, image.height] = view.size;
        source(image, `picture-${place}-${number}`);
      }
      const button = make("button");
      button.type = "button";
      button.setAttribute("aria-label", `Enlarge ${title} of study ${study.id}`);
      button.append(image);
      button.addEventListener("click", () => {
        const large = make("img");
        large.alt = image.alt;
        large.src = image.src;
        const zoom = el("zoom");
        zoom.querySelector("img")?.remove();
        zoom.append(large);
        zoom.showModal();
      });
      box.append(button);
    }
    const isUnseen = data.maxViews && number >= data.maxViews;
    box.append(make("figcaption", "", isUnseen ? `${title} (not shown to the model)` : title));
    return box;
  }
  function card(place) {
    const study = studies[place];
    const article = make("article", "study");
    article.id = `study-${place}`;
    const heading = make("h3");
    heading.tabIndex = -1;
    heading.id = `heading-${place}`;
    const link = make("a", "", study.id);
    link.href = `#${encodeURIComponent(study.id)}`;
    link.title = "Link to this study";
    heading.append(link);
    article.setAttribute("aria-labelledby", heading.id);
    article.append(heading);
    if (study.indication) article.append(make("p", "score", `Indication: ${study.indication}`));
    const parts = make("div", study.views.length ? "parts" : "parts bare");
    if (study.views.length) {
      const views = make("div", "views");
      study.views.forEach((view, number) => views.append(figure(study, place, view, number)));
      parts.append(views);
    }
    const texts = make("div", "texts");
    if (hasReference) {
      const section = make("section");
      section.append(make("h4", "", "Reference"));
      if (several) section.append(make("p", "score", `marked against ${systems[state.judge]}`));
      section.append(report(output(study).target));
      texts.append(section);
    }
    const shown = state.show === "judged" ? [state.judge] : systems.map((_, index) => index);
    for (const index of shown) texts.append(generated(study, study.outputs[index], index));
    parts.append(texts);
    const labels = fold("Labels", table(study, shown));
    labels.open = !data.hasEvidence;
    article.append(parts, labels);
    article.addEventListener("click", () => select(place, false));
    return article;
  }

  // --- The page ---
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
    el("studies").classList.toggle("many", cards.length > 100); // then only those in view are laid out
    el("studies").replaceChildren(...cards);
    const total = studies.length;
    el("count").textContent = shown.length
      ? `${matched.length === total ? "" : `${matched.length} of `}${total} studies${matched.length > state.size ? `, ${first + 1} to ${first + shown.length} shown` : ""}`
      : `0 of ${total} studies`;
    if (!shown.length) {
      const nothing = make("p", "note", "Nothing matches these filters. ");
      const button = make("button", "", "Reset filters");
      button.type = "button";
      button.addEventListener("click", () => el("filters").reset());
      nothing.append(button);
      el("studies").append(nothing);
    }
    notice(pinned >= 0 ? `The study ${studies[pinned].id} stands first because the address names it; the filters leave it out.` : "");
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
    const inside = last ? [turn("‹ Page before", state.page - 1), make("span", "", `Page ${state.page + 1} of ${last + 1}`), turn("Next page ›", state.page + 1)] : [];
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
  // Make a study the current one: named in the address, outlined and, if wanted, brought into view.
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
      // Where only those in view are laid out, the heights of the others are guesses until they are.
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
      // a stray percent sign: take it as it stands
    }
    if (places.has(name)) {
      linked = places.get(name);
      select(linked);
    } else notice(`This page holds no study ${name}.`);
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
  el("down").addEventListener("click", () => el("legend").scrollIntoView());
  el("previous").addEventListener("click", () => step(-1));
  el("next").addEventListener("click", () => step(1));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || el("zoom").open) return;
    if (event.target.closest("input, select, textarea, [tabindex='0']")) return;
    const by = { j: 1, ArrowRight: 1, n: 1, k: -1, ArrowLeft: -1, p: -1 }[event.key];
    if (by) step(by);
    else if (event.key === "/") el("text").focus();
    else return;
    event.preventDefault();
  });
  window.addEventListener("hashchange", follow);
  el("fold").open = window.innerWidth > 768; // on a phone they would fill the screen
  refresh(false);
  follow();
})();
