// One study as elements. Data are set as textContent, so that they are never interpreted as markup.
function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}
function mark(tag, kind, text, hint) {
  const element = make(tag, `mark ${kind === "ruled out" ? "ruled-out" : kind}`);
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
      const ranks = [...errors, "uncertain", "correct"];
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
  const list = chips(["missed", "hallucinated", "contradicted", "uncertain", "correct"].map((kind) =>
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
    score.append(make("b", "", percent(own.mccs)), own.format ? ", valid format" : ", invalid format");
    section.append(score);
  }
  section.append(summary(study, own));
  if (own.disagree && own.disagree.length) {
    const names = own.disagree.map((at) => `${conditions[at]} (${own.probabilities[at]} %)`);
    const line = make("p", "score", `Samples disagree: ${names.join(", ")}`);
    line.title = "At least a quarter of the samples state the finding, and at least a quarter do not. In brackets: probability of the finding.";
    section.append(line);
  }
  if (own.change && (state.judge === 0 || state.judge === place)) {
    const list = make("ul", "chips");
    for (const [name, side, text] of turns) {
      const names = own.change[side].filter((at) => isTurn(study, name, at)).map((at) => conditions[at]);
      if (!names.length) continue;
      const item = make("li");
      item.append(mark("span", `${side} ${name}`, `${text}: ${names.join(", ")}`));
      list.append(item);
    }
    if (list.children.length) {
      const box = make("div", "change");
      box.append(make("p", "score", `${systems[0]}, compared with this:`), list);
      section.append(box);
    }
  }
  if (data.redacted) return section;
  if (own.report.length && plain(own.report).trim()) section.append(report(own.report));
  else {
    section.append(make("p", "soft nothing", own.completion ? "The output contains no <report> section." : "The output is empty."));
  }
  const folds = make("div", "folds");
  if (own.completion) folds.append(fold("Output", report([own.completion])));
  if (own.thinking) folds.append(fold("Thinking", report([own.thinking])));
  section.append(folds);
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
      const label = make("td", "", classes[own.labels[i]]);
      if (own.probabilities && i < numFindings) label.append(make("span", "soft", ` ${own.probabilities[i]} %`));
      row.append(label);
      if (!hasReference) continue;
      const cell = make("td");
      const name = verdicts[own.verdicts[i]];
      if (name === "denied") cell.append(make("span", "soft", "denied in both"));
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
  const holder = el(name); // the images are at the end of the file, so that the list is shown first
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
      image.addEventListener("error", () => button.replaceWith(make("div", "problem", "The linked image was not found.")));
    } else {
      [image.width, image.height] = view.size;
      source(image, `image-${place}-${number}`);
    }
    const button = make("button");
    button.type = "button";
    button.setAttribute("aria-label", `Enlarge ${title} of study ${study.id}`);
    button.append(image);
    button.addEventListener("click", () => openViewer(place, number));
    box.append(button);
  }
  const isUnseen = data.maxViews && number >= data.maxViews;
  box.append(make("figcaption", "", isUnseen ? `${title} (not shown to the model)` : title));
  return box;
}
// The texts of a study, or what is known of them, in columns whose rows are aligned.
function reports(study) {
  const texts = make("div", "texts");
  if (hasReference && !data.redacted) {
    const section = make("section");
    section.append(make("h4", "", "Reference"));
    if (several) section.append(make("p", "score", `marked against ${systems[state.judge]}`));
    const names = conditions.filter((_, i) => i < numFindings && isStated(study.labels[i]));
    section.append(make("p", "chips soft", names.length ? `Findings: ${names.join(", ")}` : "No finding."));
    section.append(report(output(study).target));
    texts.append(section);
  }
  for (const index of shownSystems()) texts.append(generated(study, study.outputs[index], index));
  return texts;
}
const shownSystems = () => (state.show === "judged" ? [state.judge] : systems.map((_, index) => index));
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
  const parts = make("div", `parts${study.views.length ? "" : " bare"}${several ? " several" : ""}`);
  if (study.views.length) {
    const views = make("div", "views");
    study.views.forEach((view, number) => views.append(figure(study, place, view, number)));
    parts.append(views);
  }
  parts.append(reports(study));
  const labels = fold("Labels", table(study, shownSystems()));
  labels.open = !data.hasEvidence && !data.redacted;
  article.append(parts, labels);
  article.addEventListener("click", () => select(place, false));
  return article;
}
