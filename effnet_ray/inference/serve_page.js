"use strict";
const element = (id) => document.getElementById(id);

function showLabels(labels) {
  element("labels").replaceChildren(...labels.map(({ label, probability }) => {
    const [item, name, share, bar] = ["li", "span", "span", "meter"].map((tag) => document.createElement(tag));
    name.textContent = label;
    share.textContent = `${(100 * probability).toFixed(1)} %`;
    bar.value = probability;
    item.append(name, share, bar);
    return item;
  }));
}

function showUnknown({ unknown, is_unknown: isUnknown }) {
  element("unknown").textContent = isUnknown
    ? `Unlike all that this model was trained on (score ${unknown.toFixed(2)}): none of these may be right.`
    : "";
}

async function classify(file) {
  element("error").textContent = "";
  element("result").hidden = true;
  try {
    const response = await fetch("?map=1", { method: "POST", body: file });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    URL.revokeObjectURL(element("picture").src);
    element("picture").src = URL.createObjectURL(file);
    element("map").src = answer.map;
    showUnknown(answer);
    showLabels(answer.labels);
    element("result").hidden = false;
  } catch (error) {
    element("error").textContent = error.message || "the server does not answer";
  }
}

const drop = element("drop");
const highlight = (over) => (event) => {
  event.preventDefault();
  drop.classList.toggle("over", over);
};
drop.addEventListener("dragover", highlight(true));
drop.addEventListener("dragleave", highlight(false));
drop.addEventListener("drop", (event) => {
  highlight(false)(event);
  const [file] = event.dataTransfer.files;
  if (file) classify(file);
});
element("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) classify(file);
});
