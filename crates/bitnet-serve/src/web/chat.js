// The chat page of `bitnet-run serve`.
// Invariant: text of the model and of the reader reaches the page as text nodes only, never as markup.
"use strict";

const $ = (id) => document.getElementById(id);
const FIGURES = ["temperature", "top_k", "top_p", "min_p", "seed", "max_tokens", "presence_penalty", "frequency_penalty"];
const ROLES = { user: "You", assistant: "Model" };

// messages: {role, content, reasoning, tokens: [{token, logprob, top}], figures, error, shown}
let messages = [];
let model = null;
let running = null; // the AbortController of the answer in progress
let askedForKey = false;

// ---- what the browser keeps

function load(key, otherwise) {
  try {
    const text = localStorage.getItem("bitnet-run." + key);
    return text === null ? otherwise : JSON.parse(text);
  } catch { return otherwise; }
}

function save(key, value) {
  try { localStorage.setItem("bitnet-run." + key, JSON.stringify(value)); } catch { /* full or forbidden: the page works without */ }
}

function saveChat() { save("chat", messages.map(({ shown, ...kept }) => kept)); }

function saveSettings() {
  const settings = { system: $("system").value, stop_text: $("stop_text").value, probabilities: $("probabilities").checked };
  for (const name of FIGURES) settings[name] = $(name).value;
  save("settings", settings);
}

function loadSettings() {
  const settings = load("settings", {});
  for (const name of [...FIGURES, "system", "stop_text"]) if (typeof settings[name] === "string") $(name).value = settings[name];
  $("probabilities").checked = settings.probabilities === true;
  try { $("key").value = sessionStorage.getItem("bitnet-run.key") || ""; } catch { /* forbidden */ }
}

// ---- elements

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// Paragraphs, fenced code, `code` and **bold**; everything else stays as it was written.
function formatted(text) {
  const parts = [];
  const fence = /^(`{3,}|~{3,})[^\n]*\n?/m;
  while (text) {
    const open = fence.exec(text);
    const before = open ? text.slice(0, open.index) : text;
    for (const paragraph of before.split(/\n{2,}/)) if (paragraph.trim()) parts.push(element("p", {}, ...inline(paragraph.replace(/^\n+|\n+$/g, ""))));
    if (!open) break;
    const rest = text.slice(open.index + open[0].length);
    const end = rest.search(new RegExp("^" + open[1][0] + "{" + open[1].length + ",}[ \\t]*$", "m"));
    parts.push(element("pre", {}, element("code", {}, end < 0 ? rest : rest.slice(0, end))));
    if (end < 0) break;
    const line = rest.indexOf("\n", end);
    text = line < 0 ? "" : rest.slice(line + 1);
  }
  return parts;
}

function inline(text) {
  return text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/).filter(Boolean).map((part) => {
    if (part.length > 2 && part.startsWith("`") && part.endsWith("`")) return element("code", {}, part.slice(1, -1));
    if (part.length > 4 && part.startsWith("**") && part.endsWith("**")) return element("strong", {}, part.slice(2, -2));
    return part;
  });
}

function tokenView(message) {
  const view = element("div", { className: "tokens" });
  for (const token of message.tokens) {
    // a span: a button would not break across lines
    const button = element("span", { className: "token", role: "button", tabIndex: 0 }, token.token);
    button.style.setProperty("--doubt", Math.round((1 - Math.exp(token.logprob)) * 60) + "%");
    button.title = percent(token.logprob);
    button.onclick = () => showAlternatives(button, token);
    button.onkeydown = (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); showAlternatives(button, token); } };
    view.append(button);
  }
  return view;
}

function percent(logprob) {
  const share = Math.exp(logprob) * 100;
  return (share >= 0.1 ? share.toFixed(1) : share.toPrecision(1)) + " %";
}

function visible(text) { return text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/ /g, "·") || "∅"; }

function showAlternatives(button, token) {
  const box = $("alternatives");
  const rows = token.top.some((other) => other.token === token.token) ? token.top : [token, ...token.top];
  const table = element("table");
  for (const { token: text, logprob } of rows) {
    const row = element("tr", { className: text === token.token ? "chosen" : "" },
      element("td", { title: text }, visible(text)), element("td", {}, percent(logprob)),
      element("td", {}, element("meter", { min: 0, max: 1, value: Math.exp(logprob) })));
    table.append(row);
  }
  box.replaceChildren(table);
  box.hidden = false;
  const place = button.getBoundingClientRect();
  const size = box.getBoundingClientRect();
  box.style.left = Math.max(8, Math.min(place.left, innerWidth - size.width - 8)) + "px";
  const below = place.bottom + 4;
  box.style.top = (below + size.height > innerHeight ? Math.max(8, place.top - size.height - 4) : below) + "px";
}

function fill(message, index) {
  const article = message.shown;
  const last = index === messages.length - 1;
  const body = element("div", { className: "body" });
  const waiting = running && last && message.role === "assistant";
  if (message.reasoning) {
    const fold = element("details", { open: message.open ?? (waiting && !message.content) },
      element("summary", {}, "Thinking"), element("div", {}, message.reasoning));
    fold.ontoggle = () => { message.open = fold.open; };
    body.append(fold);
  }
  if (message.role === "user") body.append(message.content);
  else if (message.asTokens && message.tokens?.length) body.append(tokenView(message));
  else body.append(...formatted(message.content));
  body.classList.toggle("waiting", Boolean(waiting));
  const parts = [element("h2", {}, ROLES[message.role]), body];
  if (message.error) parts.push(element("p", { className: "error", role: "alert" }, message.error));
  if (!waiting) {
    const tools = element("div", { className: "tools" });
    const tool = (name, title, action) => tools.append(element("button", { type: "button", title, onclick: action }, name));
    tool("Copy", "Copy this text", () => navigator.clipboard?.writeText(message.content));
    if (message.role === "user") tool("Edit", "Change this message and answer it again", () => edit(index));
    if (message.role === "assistant") {
      tool("Retry", "Answer again", () => retry(index));
      if (message.tokens?.length) tool(message.asTokens ? "Text" : "Tokens", "Show the tokens with their probabilities", () => { message.asTokens = !message.asTokens; fill(message, index); });
    }
    if (message.figures) tools.append(element("span", { className: "figures" }, message.figures));
    parts.push(tools);
  }
  article.replaceChildren(...parts);
}

function show() {
  $("alternatives").hidden = true;
  const list = $("messages");
  messages.forEach((message, index) => {
    message.shown ??= element("article", { className: message.role });
    fill(message, index);
  });
  list.replaceChildren(...messages.map((message) => message.shown));
  scroll(true);
}

// Follows the text unless the reader scrolled up.
function scroll(always) {
  const list = $("messages");
  if (always || list.scrollHeight - list.scrollTop - list.clientHeight < 120) list.scrollTop = list.scrollHeight;
}

// ---- asking

function headers() {
  const sent = { "content-type": "application/json" };
  if ($("key").value) sent.authorization = "Bearer " + $("key").value;
  return sent;
}

function request() {
  const body = { model, stream: true, stream_options: { include_usage: true }, messages: [] };
  if ($("system").value.trim()) body.messages.push({ role: "system", content: $("system").value });
  for (const { role, content } of messages.slice(0, -1)) body.messages.push({ role, content });
  for (const name of FIGURES) if ($(name).value !== "" && $(name).checkValidity()) body[name] = Number($(name).value);
  if ($("stop_text").value) body.stop = [$("stop_text").value];
  if ($("probabilities").checked) Object.assign(body, { logprobs: true, top_logprobs: 5 });
  return body;
}

// What an answer that is no success says; an error of 401 opens the field for the key.
async function failure(answer) {
  let said = answer.status + " " + answer.statusText;
  try { said = (await answer.json()).error.message; } catch { /* not of this server */ }
  if (answer.status === 401) { openSettings(true); askedForKey = true; }
  return said;
}

// Yields the JSON of each event of a stream of server-sent events.
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    rest += done ? "\n\n" : value;
    const parts = rest.split(/\r?\n\r?\n/);
    rest = done ? "" : parts.pop();
    for (const part of parts) {
      const data = part.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
    if (done) return;
  }
}

async function answer() {
  const message = { role: "assistant", content: "", reasoning: "", tokens: [] };
  messages.push(message);
  running = new AbortController();
  busy(true);
  show();
  const started = performance.now();
  let first = 0, last = 0, usage = null, pieces = 0, drawn = false;
  const draw = () => { drawn = false; if (running) { fill(message, messages.length - 1); scroll(false); figures(); } };
  const figures = () => {
    const tokens = usage?.completion_tokens ?? pieces;
    if (first && tokens > 1 && last > first) $("state").textContent = ((tokens - 1) / (last - first) * 1000).toFixed(1) + " tokens/s";
  };
  try {
    const reply = await fetch("v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify(request()), signal: running.signal });
    if (!reply.ok) throw new Error(await failure(reply));
    for await (const event of events(reply)) {
      if (event.error) throw new Error(event.error.message);
      if (event.usage) usage = event.usage;
      const choice = event.choices?.[0];
      if (!choice) continue;
      const { content, reasoning_content } = choice.delta ?? {};
      if (content || reasoning_content) {
        last = performance.now();
        first ||= last;
        pieces += 1;
        message.content += content ?? "";
        message.reasoning += reasoning_content ?? "";
      }
      for (const { token, logprob, top_logprobs } of choice.logprobs?.content ?? []) message.tokens.push({ token, logprob, top: (top_logprobs ?? []).map(({ token, logprob }) => ({ token, logprob })) });
      if (choice.finish_reason === "length") message.error = "The answer reached the limit of tokens. Raise \"Most tokens\" in the settings for a longer one.";
      if (!drawn) { drawn = true; requestAnimationFrame(draw); }
    }
  } catch (error) {
    if (error.name === "AbortError") message.stopped = true;
    else message.error = error instanceof TypeError ? "The server did not answer. Check that it runs." : error.message;
  }
  running = null;
  const tokens = usage?.completion_tokens ?? pieces;
  const parts = [];
  if (tokens) parts.push(tokens + (tokens === 1 ? " token" : " tokens"));
  if (tokens > 1 && last > first) parts.push(((tokens - 1) / (last - first) * 1000).toFixed(1) + " tokens/s");
  if (first) parts.push("first after " + ((first - started) / 1000).toFixed(2) + " s");
  if (message.stopped) parts.push("stopped");
  message.figures = parts.join(", ");
  message.open = false;
  busy(false);
  show();
  saveChat();
  if (askedForKey) $("key").focus();
  else if ($("settings").hidden) $("input").focus();
  askedForKey = false;
}

function busy(yes) {
  $("send").hidden = yes;
  $("stop").hidden = !yes;
  if (yes) $("state").textContent = "";
}

function send(text) {
  if (running || !text.trim()) return;
  messages.push({ role: "user", content: text });
  saveChat();
  answer();
}

function stop() { running?.abort(); }

function retry(index = messages.length - 1) {
  if (running || messages[index]?.role !== "assistant") return;
  messages.length = index;
  answer();
}

function edit(index) {
  if (running || messages[index]?.role !== "user") return;
  const { shown, content } = messages[index];
  const area = element("textarea", { className: "edit", value: content, rows: Math.min(12, content.split("\n").length + 1) });
  area.setAttribute("aria-label", "Edit the message");
  const leave = () => fill(messages[index], index);
  const keep = () => {
    if (running || !area.value.trim()) return;
    messages.length = index;
    send(area.value);
  };
  area.onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); keep(); }
    if (event.key === "Escape") { event.stopPropagation(); leave(); }
  };
  shown.replaceChildren(area, element("div", { className: "tools" },
    element("button", { type: "button", onclick: keep }, "Send"), element("button", { type: "button", onclick: leave }, "Cancel")));
  area.focus();
}

// ---- the page

function openSettings(open) {
  $("settings").hidden = !open;
  $("open-settings").setAttribute("aria-expanded", open);
}

function theme(next) {
  if (next === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  $("theme").textContent = { system: "Theme: system", light: "Theme: light", dark: "Theme: dark" }[next];
}

function fit() {
  const input = $("input");
  input.style.height = "auto";
  input.style.height = input.scrollHeight + 2 + "px";
}

async function findModel() {
  try {
    const reply = await fetch("v1/models", { headers: headers() });
    if (!reply.ok) { $("state").textContent = await failure(reply); return; }
    model = (await reply.json()).data[0].id;
    $("model").textContent = model;
    document.title = model + " - bitnet-run";
    $("state").textContent = "";
  } catch { $("state").textContent = "no answer from the server"; }
}

$("compose").onsubmit = (event) => {
  event.preventDefault();
  const text = $("input").value;
  if (running || !text.trim()) return;
  $("input").value = "";
  fit();
  send(text);
};
$("input").oninput = fit;
$("input").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("compose").requestSubmit(); }
};
$("stop").onclick = stop;
$("new").onclick = () => { stop(); messages = []; saveChat(); show(); $("state").textContent = ""; $("input").focus(); };
$("theme").onclick = () => {
  const themes = ["system", "light", "dark"];
  const next = themes[(themes.indexOf(load("theme", "system")) + 1) % 3];
  save("theme", next);
  theme(next);
};
$("open-settings").onclick = () => openSettings($("settings").hidden);
$("settings").oninput = (event) => {
  if (event.target === $("key")) { try { sessionStorage.setItem("bitnet-run.key", $("key").value); } catch { /* forbidden */ } }
  else saveSettings();
};
$("key").onchange = findModel;
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    if (!$("alternatives").hidden) $("alternatives").hidden = true;
    else if (running) stop();
    else if (!$("settings").hidden) { openSettings(false); $("open-settings").focus(); }
  }
  if (!event.altKey || event.ctrlKey || event.metaKey) return;
  const action = {
    KeyN: () => $("new").click(),
    KeyS: () => $("open-settings").click(),
    KeyR: () => retry(),
    KeyE: () => edit(messages.findLastIndex(({ role }) => role === "user")),
  }[event.code];
  if (action) { event.preventDefault(); action(); }
});
document.addEventListener("click", (event) => {
  if (!event.target.closest(".token, #alternatives")) $("alternatives").hidden = true;
});

theme(load("theme", "system"));
loadSettings();
const kept = load("chat", []);
messages = Array.isArray(kept) ? kept.filter((message) => message && message.role in ROLES && typeof message.content === "string") : [];
show();
findModel();
