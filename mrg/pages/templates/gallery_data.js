// The data of the gallery: filters and order of the studies.
const el = (id) => document.getElementById(id);
const data = JSON.parse(el("data").textContent);
const { conditions, classes, verdicts, errors, systems, studies, hasReference } = data;
const numFindings = 13; // the last condition, No Finding, is the absence of the others
const several = systems.length > 1;
const places = new Map(studies.map((study, place) => [study.id, place]));
const isStated = (digit) => digit === "1" || digit === "3";
const percent = (value) => String(Math.round(100 * value));
const word = { stated: "1", possible: "3", "ruled out": "2" };

// Changes of the first system to another one, by whether the reference states the finding: name, list, words.
const turns = [["found", "gained", "now found"], ["cleared", "gained", "no longer hallucinated"],
  ["unfound", "lost", "no longer found"], ["added", "lost", "now hallucinated"]];
const isTurn = (study, name, at) => isStated(study.labels[at]) === ["found", "unfound"].includes(name);

const kinds = hasReference
  ? [["", "any"], ["error", "any error"], ["missed", "missed"], ["hallucinated", "hallucinated"], ["contradicted", "contradicted"],
     ["uncertain", "uncertain"], ["correct", "correct"], ["clean", "no error"], ["format", "invalid format"]]
  : [["", "any"], ["stated", "stated"], ["possible", "possible"], ["ruled out", "ruled out"]];
if (several && hasReference) {
  kinds.push(["differs", "changed"], ["gained", `gained: correct in ${systems[0]} alone`], ["lost", `lost: wrong in ${systems[0]} alone`],
    ...turns.map(([name, , text]) => [name, text]));
}
const orders = hasReference
  ? [["worst", "worst first"], ["best", "best first"], ["errors", "most errors first"], ["order", "order of the file"]]
  : [["order", "order of the file"], ["findings", "most findings first"]];
if (several && hasReference) orders.unshift(["changes", "most changes first"]);

const state = { judge: 0, show: "all", condition: "", kind: "", low: "", high: "", text: "", sort: data.sort, size: 20, page: 0 };
let matched = [];
let current = -1; // place in studies
let linked = -1; // the study in the address when the page was opened or the address changed
let pinned = -1; // that study, if the filters exclude it

const output = (study) => study.outputs[state.judge];
const change = (study) => study.outputs[Math.max(1, state.judge)].change;
const plain = (pieces = []) => pieces.map((piece) => (typeof piece === "string" ? piece : piece[0])).join("");
const haystack = (study) => {
  study.search ??= [study.id, study.indication, ...study.outputs.flatMap((o) => [plain(o.report), plain(o.target), o.thinking])]
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
  const turn = turns.find(([name]) => name === kind);
  if (turn || ["gained", "lost", "differs"].includes(kind)) {
    const { gained, lost } = change(study);
    const list = turn ? change(study)[turn[1]].filter((i) => isTurn(study, kind, i))
      : kind === "gained" ? gained : kind === "lost" ? lost : [...gained, ...lost];
    return at < 0 ? list.length > 0 : list.includes(at);
  }
  const isWanted = (name) => (kind === "error" ? errors.includes(name) : name === kind);
  if (["error", "missed", "hallucinated", "contradicted", "uncertain", "correct"].includes(kind)) {
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
