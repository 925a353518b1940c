"use strict";
// The page is whole without this: it only adds the filter over all items and the copy buttons.
(() => {
  const list = document.getElementById("items");
  if (list) {
    const items = [...list.children];
    const [search, flag, order, shown] = ["search", "flag", "order", "shown"].map((id) => document.getElementById(id));
    const texts = items.map((item) => item.textContent.normalize("NFC").toLowerCase());
    const gain = (item) => Number(item.dataset.gain);
    const sorts = {
      run: (a, b) => a.dataset.number - b.dataset.number,
      gain: (a, b) => gain(b) - gain(a),
      loss: (a, b) => gain(a) - gain(b),
    };
    const filter = () => {
      const words = search.value.normalize("NFC").toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      items.forEach((item, i) => {
        const fits = words.every((word) => texts[i].includes(word))
          && (!flag.value || item.dataset.flags.split("|").includes(flag.value));
        item.hidden = !fits;
        count += fits;
      });
      shown.textContent = `${count} of ${items.length} shown`;
    };
    search.addEventListener("input", filter);
    flag.addEventListener("change", filter);
    if (order) order.addEventListener("change", () => list.append(...[...items].sort(sorts[order.value])));
    document.getElementById("controls").hidden = false;
    filter();
  }
  for (const button of document.querySelectorAll("button[data-copy]")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copy);
      try {
        await navigator.clipboard.writeText(source.textContent.trim());
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(source);
        button.textContent = "Selected: press Ctrl+C";
      }
    });
  }
  // What is folded is printed too.
  addEventListener("beforeprint", () => document.querySelectorAll("details.block").forEach((d) => { d.open = true; }));
})();
