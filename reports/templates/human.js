"use strict";
(() => {
  const { form, store } = document.body.dataset;
  const $ = (id) => document.getElementById(id);
  const pages = [...document.querySelectorAll(".page")];
  const questions = pages.slice(1, -1);
  for (const page of questions) { page.querySelector(".answers").replaceWith($(page.dataset.kind).content.cloneNode(true)); }
  const groups = (page) => [...page.querySelectorAll("fieldset")];
  const chosen = (group) => group.querySelector("input:checked");
  const isDone = (page) => groups(page).every(chosen);
  let at = 0;
  let kept = true; // whether all answers lie in the browser's store, or in a file

  // What is saved and what is exported are the same: one row a page that has an answer.
  const rows = () => questions.map((page) => ({
    rater: $("rater").value.trim(), code: page.dataset.code,
    ...Object.fromEntries(groups(page).filter(chosen).map((g) => [g.dataset.criterion, Number(chosen(g).value)])),
  })).filter((row) => Object.keys(row).length > 2);

  function save() {
    try {
      localStorage.setItem(store, JSON.stringify({ at, language: document.documentElement.lang, rater: $("rater").value, rows: rows() }));
    } catch {
      kept = false;
      $("unsaved").hidden = false;
    }
  }

  function restore(given) {
    const pageOf = new Map(questions.map((page) => [page.dataset.code, page]));
    for (const { code, ...values } of given) {
      for (const group of pageOf.has(code) ? groups(pageOf.get(code)) : []) {
        const input = [...group.querySelectorAll("input")].find((one) => Number(one.value) === values[group.dataset.criterion]);
        if (input) { input.checked = true; }
      }
    }
  }

  function draw() {
    const done = questions.filter(isDone).length;
    const count = (n) => n.toLocaleString(document.documentElement.lang);
    pages.forEach((page, i) => { page.hidden = i !== at; });
    $("overview").textContent = `${count(done)} / ${count(questions.length)}`;
    document.querySelector("progress").value = done;
    $("left").textContent = count(questions.length - done);
    document.body.className = done === questions.length ? "done" : "undone";
    for (const group of groups(pages[at])) { explain(group); }
  }

  // The words of the number that is chosen; before that those of both ends.
  function explain(group) {
    const place = group.querySelector(".anchor");
    if (!place) { return; }
    const shown = chosen(group) ? [chosen(group).value] : ["1", "5"];
    place.replaceChildren(...shown.map((n) => {
      const words = document.createElement("span");
      words.className = "end";
      words.append(...document.querySelector(`[data-anchor="${group.dataset.criterion}-${n}"]`).cloneNode(true).childNodes);
      return words;
    }));
  }

  function go(to) {
    at = Math.max(0, Math.min(pages.length - 1, to));
    draw();
    save();
    scrollTo(0, 0);
    [...pages[at].querySelectorAll("h1")].find((head) => head.getClientRects().length).focus({ preventScroll: true });
  }

  const firstLeft = () => 1 + questions.findIndex((page) => !isDone(page));
  addEventListener("submit", (event) => {
    event.preventDefault();
    const isEnd = event.target.id === "end";
    go(isEnd || event.target.id === "start" ? firstLeft() || pages.length - 1 : at + 1);
  });
  addEventListener("change", (event) => {
    if (event.target.id !== "saved") { draw(); save(); }
  });
  addEventListener("keydown", (event) => {
    const digit = event.key.length === 1 ? "০১২৩৪৫".indexOf(event.key) : -1;
    const value = digit >= 0 ? String(digit) : event.key;
    const own = groups(pages[at]);
    if (event.ctrlKey || event.altKey || event.metaKey || !own.length || event.target.id === "rater") { return; }
    if (event.key === "Enter" && event.target.tagName !== "BUTTON") {
      event.preventDefault();
      go(at + 1);
      return;
    }
    const group = own.find((one) => one.contains(event.target)) || own.find((one) => !chosen(one)) || own[0];
    const input = [...group.querySelectorAll("input")].find((one) => one.value === value);
    if (!input) { return; }
    event.preventDefault();
    input.checked = true;
    draw();
    save();
    const next = own[own.indexOf(group) + 1];
    (next ? chosen(next) || next.querySelector("input") : pages[at].querySelector("button.main")).focus();
  });
  for (const button of document.querySelectorAll(".back")) { button.addEventListener("click", () => go(at - 1)); }
  $("overview").addEventListener("click", () => go(pages.length - 1));
  $("language").addEventListener("click", () => {
    document.documentElement.lang = document.documentElement.lang === "bn" ? "en" : "bn";
    draw();
    save();
  });
  $("download").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(rows(), null, 1)], { type: "application/json" }));
    link.download = `${form}.json`;
    link.click();
    kept = true;
  });
  $("saved").addEventListener("change", async (event) => {
    try {
      const given = JSON.parse(await event.target.files[0].text());
      $("rater").value = given[0].rater;
      restore(given);
      go(firstLeft() || pages.length - 1);
    } catch {
      $("unread").hidden = false;
    }
  });
  addEventListener("beforeunload", (event) => { if (!kept) { event.preventDefault(); } });

  try {
    const before = JSON.parse(localStorage.getItem(store) || "null");
    if (before) {
      document.documentElement.lang = before.language;
      $("rater").value = before.rater;
      restore(before.rows);
      at = before.at;
    }
  } catch { /* a store that cannot be read cannot be written either: save() says so */ }
  draw();
  save();
})();
