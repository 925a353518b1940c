"use strict";
// The page can be read without this: it adds the list of all items, the copy buttons, and whole numbers in tables.
(() => {
  const byId = (id) => document.getElementById(id);
  const one = (of, selector) => of.querySelector(selector);
  const put = (of, selector, text) => { one(of, selector).textContent = text; };
  const digits = (n) => n.toLocaleString(document.documentElement.lang, { useGrouping: false });  // of its sentences

  const reachable = (of) => {  // a long text scrolls, with the keyboard too
    for (const text of of.querySelectorAll(".bn")) if (text.scrollHeight > text.clientHeight) text.tabIndex = 0;
  };
  reachable(document);

  // ------------------------------------------------------------------------------------------------ all items
  const PAGE = 100;
  const LONG = 20000;
  const list = byId("items");
  const write = (of, selector, text) => {
    put(of, selector, text.slice(0, LONG));
    if (text.length <= LONG) return;
    const more = byId("longer").content.firstElementChild.cloneNode(true);
    more.textContent = more.dataset.text.replace("{n}", digits(text.length - LONG));
    one(of, selector).after(more);
  };
  const fold = (text) => text.normalize("NFC").toLowerCase();
  const unpacked = async () => {
    const bytes = Uint8Array.from(atob(byId("data").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  };

  const start = (data) => {
    const replies = data.runs.map((run) => {
      const found = new Map();
      // Of several replies to an item the first, as everywhere on the page.
      for (const g of run["generations.jsonl"]) if (!g.sample) found.set(`${g.candidate}\n${g.id}`, g);
      return found;
    });
    const messages = new Map(data.runs[0]["examples.jsonl"].map((message) => [message.id, message]));
    const items = data.items.map(([id, gain, shown, scores, flags], at) => {
      const own = data.names.map(([, run, candidate]) => replies[run].get(`${candidate}\n${id}`));
      const message = messages.get(id);
      const text = [message.title, message.topic, message.question, message.reference, ...own.map((g) => g.reply)];
      return { number: at + 1, gain, shown, scores, flags, own, message, all: [...new Set(flags.flat())], text: fold(text.join("\n")) };
    });
    const [search, topic, flag, order, shown, more] = ["search", "topic", "flag", "order", "shown", "more"].map(byId);
    const flagged = (of, flags) => flags.forEach((text) => {
      of.append(Object.assign(document.createElement("span"), { className: "flag", textContent: `⚑ ${text}` }));
    });
    for (const text of [...new Set(items.map((item) => item.message.topic))].filter(Boolean).sort()) topic.append(new Option(text, text));
    topic.hidden = topic.length < 3;
    flag.hidden = flag.length < 2;

    const answer = (item, i) => {
      const made = byId("reply").content.cloneNode(true);
      const { reply, tokens } = item.own[i];
      put(made, "bdi", data.names[i][0]);
      put(made, ".score", `${data.unit} ${item.scores[i]}`);
      if (tokens === null) one(made, ".tokens").remove(); else put(made, ".tokens", one(made, ".tokens").dataset.text.replace("{n}", digits(tokens)));
      flagged(one(made, ".label"), item.flags[i]);
      write(made, ".bn", reply);
      one(made, reply.trim() ? ".none" : ".bn").remove();
      return made;
    };
    const open = (item, made) => {  // what is in an item is made when it is opened
      const beside = Number(list.dataset.beside);
      write(made, ".question", item.message.question);
      write(made, ".reference .bn", item.message.reference);
      put(made, ".topic bdi", item.message.topic);
      one(made, ".link").href = `#item-${item.number}`;
      item.own.forEach((_, i) => one(made, i < beside ? ".replies" : ".rest .replies").append(answer(item, i)));
      one(made, ".rest").hidden = item.own.length <= beside;
      const texts = [item.message.reference, ...item.own.map((g) => g.reply)];
      const names = [one(made, ".reference strong").textContent, ...data.names.map(([name]) => name)];
      const [from, to] = [".from", ".to"].map((of) => one(made, of));
      names.forEach((name, i) => { from.append(new Option(name, i)); to.append(new Option(name, i)); });
      [from.value, to.value] = names.length > 2 ? [1, 2] : [0, 1];
      const compare = () => {
        const parts = difference(texts[from.value], texts[to.value]);
        [one(made, ".long").hidden, one(made, ".legend").hidden] = [parts !== null, parts === null];
        one(made, ".changes").replaceChildren(...(parts ?? []).map(([kind, text]) => {
          return kind ? Object.assign(document.createElement(kind), { textContent: text }) : text;
        }));
        reachable(made);
      };
      from.addEventListener("change", compare);
      to.addEventListener("change", compare);
      one(made, ".difference").addEventListener("toggle", compare, { once: true });
      reachable(made);
    };
    const row = (item) => {
      const made = byId("item").content.firstElementChild.cloneNode(true);
      made.id = `item-${item.number}`;
      put(made, ".number", item.number);
      put(made, ".title", item.message.title || item.message.topic || item.message.id);
      put(made, ".gain", item.shown && `Δ ${item.shown}`);
      flagged(one(made, ".row"), item.all);
      made.addEventListener("toggle", () => open(item, made), { once: true });
      return made;
    };

    let found = items;
    const draw = () => {
      list.append(...found.slice(list.childElementCount, list.childElementCount + PAGE).map(row));
      more.hidden = list.childElementCount >= found.length;
    };
    const filter = () => {
      const words = fold(search.value).split(/\s+/).filter(Boolean);
      const turn = { gain: -1, loss: 1 }[order?.value] ?? 0;
      found = items.filter((item) => words.every((word) => item.text.includes(word))
        && (!topic.value || item.message.topic === topic.value) && (!flag.value || item.all.includes(flag.value)));
      found.sort((a, b) => turn * (a.gain - b.gain) || a.number - b.number);
      shown.textContent = shown.dataset.text.replace("{count}", digits(found.length)).replace("{total}", digits(items.length));
      list.replaceChildren();
      draw();
    };
    const follow = () => {  // #item-12 leads to the twelfth item, wherever it is in the list
      const item = items[Number(/^#item-(\d+)$/.exec(location.hash)?.[1]) - 1];
      if (!item) return;
      if (!found.includes(item)) {
        [search.value, topic.value, flag.value] = ["", "", ""];
        filter();
      }
      while (!byId(`item-${item.number}`)) draw();
      const made = byId(`item-${item.number}`);
      made.open = true;
      made.scrollIntoView({ behavior: "instant" });
      one(made, "summary").focus({ preventScroll: true });
    };
    search.addEventListener("input", filter);
    for (const select of [topic, flag, order]) select?.addEventListener("change", filter);
    more.addEventListener("click", draw);
    addEventListener("hashchange", follow);
    byId("without").hidden = true;
    byId("controls").hidden = false;
    filter();
    follow();
  };

  // What leads from one list to another, as [kind, piece]: "del", "ins", or "" for what both have. null: too long.
  const steps = (a, b) => {
    let [head, tail] = [0, 0];
    while (head < a.length && head < b.length && a[head] === b[head]) head++;
    while (tail < a.length - head && tail < b.length - head && a.at(-1 - tail) === b.at(-1 - tail)) tail++;
    const [n, m] = [a.length - head - tail, b.length - head - tail];
    if (n * m > 4e6) return null;
    const common = Array.from({ length: n + 1 }, () => new Uint16Array(m + 1));  // longest common subsequence
    for (let i = n - 1; i >= 0; i--) {
      for (let j = m - 1; j >= 0; j--) {
        common[i][j] = a[head + i] === b[head + j] ? common[i + 1][j + 1] + 1 : Math.max(common[i + 1][j], common[i][j + 1]);
      }
    }
    const found = a.slice(0, head).map((piece) => ["", piece]);
    let [i, j] = [0, 0];
    while (i < n || j < m) {
      if (i < n && j < m && a[head + i] === b[head + j]) { found.push(["", a[head + i]]); i++; j++; }
      else if (j === m || (i < n && common[i + 1][j] >= common[i][j + 1])) found.push(["del", a[head + i++]]);
      else found.push(["ins", b[head + j++]]);
    }
    return found.concat(a.slice(a.length - tail).map((piece) => ["", piece]));
  };
  const joined = (pieces) => pieces.reduce((runs, [kind, text]) => {
    if (runs.length && runs.at(-1)[0] === kind) runs.at(-1)[1] += text; else runs.push([kind, text]);
    return runs;
  }, []);
  // By words; and by graphemes, so never inside a conjunct, where two runs of words have half of them in common.
  const graphemes = (text) => Array.from(new Intl.Segmenter("bn", { granularity: "grapheme" }).segment(text), (s) => s.segment);
  const difference = (from, to) => {
    const words = from.length + to.length > 2 * LONG ? null : steps(...[from, to].map((text) => text.normalize("NFC").match(/\s+|\S+\s*/g) ?? []));
    if (words === null) return null;
    const found = [];
    let [gone, come] = ["", ""];
    const flush = () => {
      const [a, b] = gone.length * come.length > 4e6 ? [[], []] : [gone, come].map(graphemes);
      const inner = a.length && b.length ? steps(a, b) : null;
      const shared = inner?.filter(([kind]) => !kind).length ?? 0;
      if (inner && 2 * shared >= Math.max(a.length, b.length)) found.push(...inner);
      else found.push(...[["del", gone], ["ins", come]].filter(([, text]) => text));
      [gone, come] = ["", ""];
    };
    for (const [kind, word] of words) {
      if (kind === "del") gone += word;
      else if (kind === "ins") come += word;
      else { flush(); found.push(["", word]); }
    }
    flush();
    return joined(found);
  };
  if (list) unpacked().then(start);

  // ------------------------------------------------------------------------------------------------ tables
  // A number that is cut by an edge, or that the names cover, would be read as another one: it is not shown.
  for (const box of document.querySelectorAll(".scroll")) {
    const cells = [...box.querySelectorAll(":is(th, td):is(.number, .interval)")];
    const whole = () => {
      const [edge, head] = [box.getBoundingClientRect(), one(box, "tbody th")];
      const left = head && getComputedStyle(head).position === "sticky" ? head.getBoundingClientRect() : edge;
      const places = cells.map((cell) => cell.getBoundingClientRect());
      cells.forEach((cell, i) => {
        const before = head && cell.cellIndex < head.cellIndex;
        const from = before ? edge.left : Math.max(edge.left, left === edge ? edge.left : left.right);
        cell.classList.toggle("cut", box.scrollWidth > box.clientWidth && (places[i].left < from - 1 || places[i].right > edge.right + 1));
      });
    };
    box.addEventListener("scroll", () => requestAnimationFrame(whole), { passive: true });
    new ResizeObserver(whole).observe(box);
  }

  // ------------------------------------------------------------------------------------------------ the rest
  for (const button of document.querySelectorAll("button[data-copy]")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const source = byId(button.dataset.copy);
      try {
        await navigator.clipboard.writeText(source.textContent.trim());
        button.textContent = button.dataset.done;
      } catch {
        getSelection().selectAllChildren(source);
        button.textContent = button.dataset.marked;
      }
    });
  }
  // What is folded is printed too.
  addEventListener("beforeprint", () => document.querySelectorAll("details.block").forEach((d) => { d.open = true; }));
})();
