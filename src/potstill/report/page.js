"use strict";
// What a mark stands for, shown at once on hover, touch and focus; without this script the browser shows its <title>.
(() => {
  const box = document.createElement("div");
  box.id = "tooltip";
  box.hidden = true;
  document.body.append(box);
  for (const mark of document.querySelectorAll("svg .tip")) {
    const title = mark.querySelector("title");
    if (title) { mark.dataset.tip = title.textContent; title.remove(); }
  }
  for (const element of document.querySelectorAll("[title]")) {
    element.dataset.tip = element.title;
    element.removeAttribute("title");
  }
  const hide = () => { box.hidden = true; };
  const show = (event) => {
    const mark = event.target.closest ? event.target.closest("[data-tip]") : null;
    if (!mark) { hide(); return; }
    box.textContent = mark.dataset.tip;
    box.hidden = false;
    const at = mark.getBoundingClientRect();
    const left = Math.min(Math.max(8, at.left + at.width / 2 - box.offsetWidth / 2), innerWidth - box.offsetWidth - 8);
    const above = at.top - box.offsetHeight - 8;
    box.style.left = `${left + scrollX}px`;
    box.style.top = `${(above > 4 ? above : at.bottom + 8) + scrollY}px`;
  };
  document.addEventListener("pointerover", show);
  document.addEventListener("pointerdown", show);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") { hide(); } });
  addEventListener("scroll", hide, { passive: true });
  addEventListener("beforeprint", () => { for (const one of document.querySelectorAll("details")) { one.open = true; } });
  document.documentElement.dataset.script = "ran";
})();
