"use strict";
(() => {
  const tools = document.getElementById("tools");
  if (!tools) return;
  tools.hidden = false;
  const search = document.getElementById("search");
  const layer = document.getElementById("layer");
  const shown = document.getElementById("shown");
  const findings = [...document.querySelectorAll("details.finding")];
  const texts = new Map();
  const text = (item) => {
    if (!texts.has(item)) texts.set(item, item.textContent.toLowerCase());
    return texts.get(item);
  };
  const picked = (name) => new Set([...tools.querySelectorAll(`input[name=${name}]:checked`)].map((box) => box.value));
  const apply = () => {
    const verdicts = picked("verdict");
    const severities = picked("severity");
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const item of findings) {
      const fits = verdicts.has(item.dataset.verdict) && severities.has(item.dataset.severity)
        && (!layer.value || item.parentElement.dataset.layer === layer.value)
        && words.every((word) => text(item).includes(word));
      item.classList.toggle("hide", !fits);
      if (fits) count += 1;
    }
    for (const part of document.querySelectorAll("section.layer")) {
      part.classList.toggle("hide", !part.querySelector("details.finding:not(.hide)"));
    }
    shown.textContent = `${count} of ${findings.length} shown`;
  };
  tools.addEventListener("input", apply);
  tools.addEventListener("submit", (event) => event.preventDefault());
  const setAll = (open) => {
    for (const item of findings) if (!item.classList.contains("hide")) item.open = open;
  };
  document.getElementById("open").addEventListener("click", () => setAll(true));
  document.getElementById("close").addEventListener("click", () => setAll(false));
  document.getElementById("reset").addEventListener("click", () => {
    for (const box of tools.querySelectorAll("input[type=checkbox]")) box.checked = true;
    search.value = "";
    layer.value = "";
    apply();
  });
  const follow = () => {
    const aim = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (aim && aim.tagName === "DETAILS") {
      aim.open = true;
      aim.scrollIntoView({ block: "center" });
    }
  };
  addEventListener("hashchange", follow);
  // On paper nobody can open anything: what failed is printed with its evidence and remedy.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = findings.filter((item) => !item.open && !item.classList.contains("hide") && item.dataset.verdict === "fail");
    for (const item of opened) item.open = true;
  });
  addEventListener("afterprint", () => {
    for (const item of opened) item.open = false;
  });
  apply();
  follow();
})();
