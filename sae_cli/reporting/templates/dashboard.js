"use strict";
(() => {
  const [first, ...chunks] = document.querySelectorAll("script[type='application/json']");
  const { columns, tokens, index, other, edges, ...page } = JSON.parse(first.textContent);
  const every = columns.id.map((_, k) => k);
  const placeOf = new Map(columns.id.map((id, k) => [id, k]));
  const parsed = [];
  const chunk = (n) => (parsed[n] ??= JSON.parse(chunks[n].textContent));
  const detail = (k) => chunk(Math.floor(k / page.chunk))[k % page.chunk];
  const $ = (id) => document.getElementById(id);
  const el = (tag, attributes, ...children) => {
    const drawn = ["svg", "rect", "line", "text"].includes(tag);
    const node = document.createElementNS(`http://www.w3.org/${drawn ? "2000/svg" : "1999/xhtml"}`, tag);
    for (const [key, value] of Object.entries(attributes)) if (value) node.setAttribute(key, value);
    node.append(...children.flat());
    return node;
  };
  const terms = (items) => items.map(([dt, title, dd]) => el("div", {}, el("dt", { title }, dt), el("dd", {}, dd)));
  const head = (text, small, title = "") => el("h3", { title }, text, el("small", {}, small));

  const whole = (v) => v.toLocaleString("en-US");
  const digits = { minimumSignificantDigits: 3, maximumSignificantDigits: 3 };
  const number = (v) => (v ? v.toLocaleString("en-US", digits).replace("-", "−") : "0");
  const fixed = (v, decimals = 2) => v.toFixed(decimals).replace("-", "−");
  const NAMED = { "\n": "↵", "\t": "⇥", "\r": "␍" };
  const UNSEEN = /[\0-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
  const shown = (t) => tokens[t].replace(UNSEEN, (c) => NAMED[c] ?? `⟨${c.charCodeAt(0).toString(16)}⟩`) || "∅";
  // In a list, where no neighbour shows them, leading spaces are drawn.
  const listed = (t) => {
    const [, spaces, rest] = /^( *)(.*)$/s.exec(t < 0 ? "" : shown(t));
    return el("bdi", { title: spaces + rest }, el("i", {}, "·".repeat(spaces.length)), rest);
  };

  const FIELDS = {
    density: ["density", "share of rows (tokens) on which it fires", (v) => `${number(100 * v)} %`],
    max: ["max", "largest activation over all rows, in units of the scaled input", number],
    mean: ["mean", "mean activation over the rows on which it fires, in units of the scaled input", number],
    norm: ["decoder norm", "length of its decoder direction", number],
    bias: ["bias", "encoder bias, in units of the scaled input", number],
    nearest: ["nearest cosine", "cosine with the nearest other direction of this SAE", (v) => fixed(v, 3)],
    explained: [`explained by ${other?.name}`, "share of it that three directions explain", (v) => fixed(v, 3)],
  };
  const field = (key, k) => (columns[key][k] === null ? "–" : FIELDS[key][2](columns[key][k]));
  const composed = (k) => columns.explained[k] >= 0.8 && columns.single[k] <= 0.6;
  const FILTERS = {
    all: ["every latent on this page", () => true],
    alive: ["fires on some row", (k) => columns.density[k] > 0],
    dense: ["fires on more than 1 % of rows", (k) => columns.density[k] > 0.01],
    dead: ["fires on no row", (k) => columns.density[k] === 0],
    composite: ["three directions of the other SAE explain at least 80 % of it, the best one at most 60 %", composed],
  };
  const is = (name, k) => FILTERS[name][1](k);
  const MARKED = ["dead", "dense", "composite"];
  const RANKS = ["number", "examples peak on it", "positive logits hold it"];
  const state = { filter: "all", sort: "id", up: true, wrap: false, around: Infinity, current: -1 };
  let [order, hits] = [[], null];

  // Latents by number, then those whose examples peak on a matching token, then by positive logits.
  const find = (query) => {
    const word = query.replaceAll("↵", "\n").toLowerCase();
    const weigh = (token) => (token.trim() === word || token === word ? 2 : Number(token.includes(word)));
    const weight = tokens.map((token) => weigh(token.toLowerCase()));
    const [, hash, id] = /^(#?)(\d+)$/.exec(query.trim()) ?? [];
    const hit = (k) => {
      const peaks = index.peaks[k].filter((t) => weight[t]);
      const logit = index.promoted[k].find((t) => weight[t]);
      if (id && String(columns.id[k]).startsWith(id)) return { rank: 0, score: -columns.id[k], token: columns.top[k] };
      if (hash) return null;
      if (peaks.length) return { rank: 1, score: peaks.reduce((sum, t) => sum + weight[t], 0), token: peaks[0] };
      return logit === undefined ? null : { rank: 2, score: weight[logit], token: logit };
    };
    return new Map(every.map((k) => [k, hit(k)]).filter(([, found]) => found));
  };
  const arrange = () => {
    const query = $("search").value;
    hits = query.trim() ? find(query) : null;
    $("direction").textContent = state.up ? "↑" : "↓";
    const value = (k) => columns[state.sort][k];
    // In the order of numbers the best hits come first.
    const score = (k) => (hits ? hits.get(k).rank * 1e9 - (state.sort === "id") * hits.get(k).score : 0);
    const compare = (a, b) => (value(a) === null) - (value(b) === null) || (state.up ? 1 : -1) * (value(a) - value(b));
    order = every.filter((k) => (!hits || hits.has(k)) && is(state.filter, k));
    order.sort((a, b) => score(a) - score(b) || compare(a, b) || a - b);
    const key = state.sort === "id" ? "density" : state.sort;
    const items = order.map((k, n) => {
      const { rank, token } = hits?.get(k) ?? { token: columns.top[k] };
      const attributes = { href: `#${columns.id[k]}`, tabindex: -1, class: MARKED.find((name) => is(name, k)) };
      const value = el("i", { title: FIELDS[key][0] }, field(key, k));
      const row = el("li", {}, el("a", attributes, el("b", {}, columns.id[k]), listed(token), value));
      return rank === hits?.get(order[n - 1])?.rank ? row : [el("li", { class: "head" }, RANKS[rank]), row];
    });
    $("list").replaceChildren(...items.flat());
    $("hits").textContent = `${whole(order.length)} of ${whole(every.length)}`;
    point();
  };
  // Marks the latent shown in the list; it is the one stop of the tab key there.
  const point = () => {
    const list = $("list");
    const focused = list.contains(document.activeElement);
    const old = list.querySelector("[tabindex='0']");
    old?.removeAttribute("aria-current");
    old?.setAttribute("tabindex", -1);
    const place = order.indexOf(state.current);
    $("place").textContent = `${place < 0 ? "–" : whole(place + 1)} of ${whole(order.length)}`;
    const link = list.querySelector(`[href='#${columns.id[order[Math.max(0, place)]]}']`);
    if (!link) return;
    link.tabIndex = 0;
    if (place >= 0) link.setAttribute("aria-current", "true");
    if (place > 0) link.parentNode.scrollIntoView({ block: "nearest" });
    else list.scrollTop = 0;
    if (focused) link.focus();
  };

  const bars = (items, largest, name = "") => el("ul", { class: `rows ${name}` }, items.map(([label, value, text]) => {
    const item = el("li", {}, label, el("span", {}, text));
    item.style.setProperty("--share", `${Math.min(100, (100 * Math.abs(value)) / largest)}%`);
    return item;
  }));
  const histogram = (counts) => {
    const [W, H, left, floor] = [360, 240, 30, 221];
    const step = (W - left) / counts.length;
    const [low, high] = [edges[0], edges.at(-1)].map(Math.log10);
    const most = Math.max(...counts, 1);
    const y = (n) => floor - ((floor - 6) * Math.log1p(n)) / Math.log1p(most);
    const line = (at) => el("line", { x1: left, x2: W, y1: at, y2: at });
    const short = { notation: "compact", maximumSignificantDigits: 2 };
    const label = (v, x, y, anchor) => el("text", { x, y, "text-anchor": anchor }, v.toLocaleString("en-US", short));
    const parts = [line(floor)];
    for (let n = 1; n <= most; n *= 10) parts.push(line(y(n)), label(n, left - 6, y(n) + 4, "end"));
    for (let power = Math.ceil(low - 1e-6); power <= high + 1e-6; power += 1) {
      parts.push(label(10 ** power, left + ((W - left) * (power - low)) / (high - low), H - 3, "middle"));
    }
    counts.forEach((n, bin) => {
      const x = left + step * bin;
      parts.push(el("rect", { class: n ? "bin" : "", x, width: step * 0.9, y: y(n), height: floor - y(n) }));
      parts.push(el("rect", { class: "hit", x, width: step, y: 0, height: floor }));
      const range = `${number(edges[bin])} to ${number(edges[bin + 1])}`;
      parts.at(-1).tip = () => `${range}\n${whole(n)} row${n === 1 ? "" : "s"}`;
    });
    return el("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "Histogram of activations" }, parts);
  };
  const cards = (one) => {
    const all = [el("section", {}, head("Activations", "rows, both axes log"), histogram(one.counts))];
    if (one.positive) {
      const largest = Math.max(...[...one.positive, ...one.negative].map(([, logit]) => Math.abs(logit)));
      const items = (key) => one[key].map(([t, logit]) => [listed(t), logit, fixed(logit)]);
      const half = (key) => el("div", {}, head(`${key} logits`, ""), bars(items(key), largest, key));
      all.push(el("section", { class: "two" }, half("positive"), half("negative")));
    }
    const near = one.neighbours.map(([id, cosine]) => {
      const k = placeOf.get(id);
      const name = k === undefined ? el("span", { title: "not on this page" }, id) : el("a", { href: `#${id}` }, id);
      return [el("span", {}, name, " ", listed(columns.top[k] ?? -1)), cosine, fixed(cosine, 3)];
    });
    all.push(el("section", {}, head("Nearest latents", "cosine"), bars(near, 1)));
    if (one.constituents) {
      const linked = other.page && new URL(other.page, location).protocol === location.protocol;
      const sum = one.constituents.map(([id, coefficient, cosine], n) => {
        const name = linked ? el("a", { href: `${other.page}#${id}` }, other.name, id) : other.name + id;
        const factor = `${n ? "+" : "≈"} ${fixed(coefficient)} × `;
        return el("li", {}, el("span", {}, factor, name, ` (cos ${fixed(cosine)})`));
      });
      const shares = one.explained.map((share, n) => `by ${n + 1}: ${fixed(share)}`);
      all.at(-1).append(head(`Constituents in ${other.name}`, "", other.run), el("ul", { class: "rows" }, sum),
        el("p", {}, `Explained ${shares.join(", ")}`));
    }
    return all;
  };

  const example = (one) => {
    const place = (i) => `context ${whole(one.context)} · position ${whole(one.position + i - one.at)}`;
    const value = el("b", { title: place(one.at) }, number(one.value));
    if (!page.text) return el("li", { class: "example" }, value, place(one.at));
    const nodes = one.t.map((t, i) => {
      const node = el("span", { class: i === one.at ? "token peak" : "token" }, shown(t));
      const share = 100 * Math.min(1, Math.max(0, one.a[i] / columns.max[state.current]));
      if (share) node.style.setProperty("--a", `${share.toFixed(1)}%`);
      node.tip = () => `${shown(t)}\n${number(one.a[i])} · ${share.toFixed(0)} % of max\n${place(i)}`;
      return node;
    });
    const before = nodes.slice(Math.max(0, one.at - state.around), one.at);
    const after = nodes.slice(one.at, one.at + state.around + 1);
    return el("li", { class: "example" }, value, el("span", { class: "before" }, before), el("span", {}, after));
  };
  const examples = () => {
    const groups = detail(state.current).groups.filter((group) => group.examples.length).map((group) => {
      const values = group.examples.map((one) => one.value);
      const range = `${values.length} from ${number(Math.max(...values))} to ${number(Math.min(...values))}`;
      return el("div", {}, head(group.name, range), el("ol", {}, group.examples.map(example)));
    });
    $("groups").className = state.wrap || !page.text ? "wrapped" : "";
    $("groups").replaceChildren(...(groups.length ? groups : [`Silent on all ${whole(page.rows)} rows.`]));
  };
  const show = (k) => {
    state.current = k;
    $("name").textContent = `Latent ${columns.id[k]}`;
    const strong = columns.density[k] > 0.1;
    const more = (name) => (name === "dense" ? ` > ${strong ? 10 : 1} %` : "");
    const mark = (name) => el("span", { class: strong ? name : "", title: FILTERS[name][0] }, name, more(name));
    $("marks").replaceChildren(...MARKED.filter((name) => is(name, k)).map(mark));
    const known = Object.keys(FIELDS).filter((key) => key !== "explained" || other);
    $("numbers").replaceChildren(...terms(known.map((key) => [FIELDS[key][0], FIELDS[key][1], field(key, k)])));
    const fired = Math.round(columns.density[k] * page.rows);
    $("numbers").querySelector("dd").append(el("small", {}, `${whole(fired)} rows`));
    $("cards").replaceChildren(...cards(detail(k)));
    examples();
    hide();
    $("main").scrollTop = 0;
    if ($("main").getBoundingClientRect().top < 0) $("main").scrollIntoView();
    point();
  };

  // The address follows a moment later: a key held down leaves one entry of history, not hundreds.
  let timer = 0;
  const go = (k) => {
    show(k);
    clearTimeout(timer);
    timer = setTimeout(() => history.pushState(null, "", `#${columns.id[k]}`), 150);
  };
  const step = (by) => {
    const place = order.indexOf(state.current);
    const next = place < 0 ? 0 : place + by;
    if (next in order) go(order[next]);
  };
  const follow = () => {
    clearTimeout(timer);
    drawer(false);
    const k = location.hash ? placeOf.get(Number(location.hash.slice(1))) : order[0];
    if (k !== undefined || state.current < 0) show(k ?? order[0]);
  };
  const choice = (key, options, apply) => {
    const buttons = options.map(([, title, ...label]) => el("button", { type: "button", title }, label));
    const choose = (value) => {
      state[key] = value;
      buttons.forEach((button, n) => button.setAttribute("aria-pressed", options[n][0] === value));
      if (state.current >= 0) apply();
    };
    buttons.forEach((button, n) => button.addEventListener("click", () => choose(options[n][0])));
    $(key).append(...buttons);
    choose(state[key]);
    return choose;
  };
  const drawer = (open) => {
    document.body.classList.toggle("open", open);
    $("menu").setAttribute("aria-expanded", open);
  };
  const hide = () => { $("tip").hidden = true; };
  addEventListener("scroll", hide, true);
  addEventListener("pointerover", ({ target }) => {
    if (!target.tip) return hide();
    Object.assign($("tip"), { textContent: target.tip(), hidden: false });
    const [at, own] = [target, $("tip")].map((node) => node.getBoundingClientRect());
    const left = Math.min(innerWidth - own.width - 6, at.left + (at.width - own.width) / 2);
    const top = at.top > own.height + 10 ? at.top - own.height - 6 : at.bottom + 6;
    Object.assign($("tip").style, { left: `${Math.max(6, left)}px`, top: `${top}px` });
  });
  const system = matchMedia("(prefers-color-scheme: dark)");
  const paint = (dark) => {
    document.documentElement.style.colorScheme = dark ? "dark" : "light";
    $("look").textContent = dark ? "Light" : "Dark";
  };
  system.addEventListener("change", () => paint(system.matches));

  const leave = () => { drawer(false); document.activeElement.blur(); };
  const [next, previous] = [() => step(1), () => step(-1)];
  const KEYS = {
    j: next, ArrowRight: next, k: previous, ArrowLeft: previous,
    "/": () => { drawer(true); $("search").focus(); $("search").select(); }, "?": () => $("keys").showModal(),
    Escape: () => leave(), Enter: () => { if (order.length) go(order[0]); leave(); },
    d: () => paint($("look").textContent === "Dark"), w: () => wrap(!state.wrap),
  };
  for (const one of document.querySelectorAll("[data-key]")) one.addEventListener("click", KEYS[one.dataset.key]);
  $("direction").addEventListener("click", () => { state.up = !state.up; arrange(); });
  $("sort").addEventListener("change", ({ target }) => {
    Object.assign(state, { sort: target.value, up: target.value === "id" });
    arrange();
  });
  $("search").addEventListener("input", arrange);
  addEventListener("click", ({ target }) => drawer(target.closest("#menu, #panel") !== null && !target.closest("a")));
  addEventListener("hashchange", follow);
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
    const typing = event.target === $("search");
    if (!(event.key in KEYS) || (event.key !== "Escape" && typing !== (event.key === "Enter"))) return;
    event.preventDefault();
    KEYS[event.key]();
  });

  document.title = `${page.title} · features`;
  $("title").textContent = page.title;
  $("run").append(` · ${page.run}`);
  $("about").append(...terms(page.facts.map(([name, value]) => [name, "", value])));
  $("bar").hidden = !page.text;
  const left = Math.min(0.62, Math.max(0.38, page.before / (page.before + page.after || 1)));
  $("groups").style.cssText = `--left: ${left}fr; --right: ${1 - left}fr`;
  const many = (key) => every.filter(FILTERS[key][1]).length;
  const filled = Object.keys(FILTERS).filter(many);
  choice("filter", filled.map((key) => [key, FILTERS[key][0], key, el("small", {}, whole(many(key)))]), arrange);
  $("sort").querySelector("[value=explained]").hidden = !other;
  const wrap = choice("wrap", [[false, "peaks in one column", "one line"], [true, "all of it", "wrapped"]], examples);
  const reach = [4, 8, 16, Infinity].filter((n) => n < Math.max(page.before, page.after) || n === Infinity);
  choice("around", reach.map((n) => [n, "tokens beside the peak", n < Infinity ? `±${n}` : "all"]), examples);
  paint(system.matches);
  arrange();
  follow();
})();
