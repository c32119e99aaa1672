// The state of the page is its address, "#topology/depth/keep": a key of DRAWINGS in drawings.js.

const form = document.getElementById("choice");
const picture = document.querySelector("#drawing img");
const START = "unetpp/4/all";

function unique(values) {
  return [...new Set(values)];
}

function fill(select, values, chosen, text) {
  select.replaceChildren(...values.map(value => new Option(text(value), value)));
  select.value = chosen;
}

function show() {
  const asked = location.hash.slice(1);
  const key = asked in DRAWINGS ? asked : START;
  const [topology, depth, keep] = key.split("/");
  const parts = Object.keys(DRAWINGS).map(name => name.split("/"));
  const deep = parts.filter(part => part[0] === topology);
  const kept = deep.filter(part => part[1] === depth);
  fill(form.topology, unique(parts.map(part => part[0])), topology, name => name);
  fill(form.depth, unique(deep.map(part => part[1])), depth, number => number);
  fill(form.keep, kept.map(part => part[2]), keep,
       value => value === "all" ? "everything" : `depth ${value}`);

  const svg = DRAWINGS[key].map(line => LINES[line]).join("\n");
  picture.src = "data:image/svg+xml," + encodeURIComponent(svg);
  picture.alt = `${topology} of depth ${depth}` + (keep === "all" ? "" : ` kept to depth ${keep}`);

  const rows = COSTS[`${topology}/${depth}`].map(([head, parameters, macs]) => {
    const row = document.createElement("tr");
    if (String(head) === keep) row.setAttribute("aria-current", "true");
    for (const text of [head, parameters.toLocaleString("en"), `${(macs / 1e9).toFixed(3)} G`])
      row.insertCell().textContent = text;
    return row;
  });
  document.querySelector("#costs tbody").replaceChildren(...rows);
}

// half its size is the smallest at which a drawing can be read; a phone scrolls the wide ones
picture.addEventListener("load", () => {
  picture.style.minWidth = `${picture.naturalWidth / 2}px`;
});

form.addEventListener("change", () => {
  const [topology, depth, keep] = [form.topology, form.depth, form.keep].map(field => field.value);
  const key = `${topology}/${depth}/${keep}`;
  location.replace("#" + (key in DRAWINGS ? key : `${topology}/${depth}/all`));
});
addEventListener("hashchange", show);
show();
