// The ask panel: sends a question, and shows the answers of one mode or several as they stream.
"use strict";

(() => {
  const form = document.getElementById("ask");
  if (!form) return;
  const answers = document.getElementById("answers"), stop = document.getElementById("stop");
  const buttons = [document.getElementById("send"), document.getElementById("compare")];
  const copy = (id) => document.getElementById(id).content.firstElementChild.cloneNode(true);
  const nameOf = (mode) => document.querySelector(`.mode-name[data-mode="${mode}"]`);
  let running = null, last = null;

  // The events of a response, as they come.
  async function* events(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value.replaceAll("\r", "")).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const fields = Object.fromEntries(block.split("\n").map((line) => {
          const colon = line.indexOf(":");
          return [line.slice(0, colon), line.slice(colon + 1).trimStart()];
        }));
        if (fields.data) yield { kind: fields.event, data: JSON.parse(fields.data) };
      }
    }
  }

  function shell(question, modes) {
    const article = copy("one-answer"), ways = new Map();
    article.classList.toggle("several", modes.length > 1);
    article.querySelector("h3").textContent = question;
    for (const mode of modes) {
      const way = copy("one-way"), name = nameOf(mode);
      way.querySelector("h4").textContent = name.innerHTML;
      way.querySelector("h4").title = name.dataset.help;
      article.querySelector(".ways").append(way);
      ways.set(mode, way);
    }
    answers.prepend(article);
    return { article, ways };
  }

  function refuse(way, message) {
    const problem = document.createElement("p");
    problem.className = "problem";
    problem.textContent = message;
    way.querySelector(".body").replaceChildren(problem);
    way.removeAttribute("aria-busy");
  }

  function show({ article, ways }, { kind, data }) {
    const way = ways.get(data.mode);
    if (kind === "delta") way.querySelector(".reply").append(data.text);
    if (kind === "answer") {
      way.querySelector(".body").innerHTML = data.html;
      way.removeAttribute("aria-busy");
    }
    if (kind === "refusal") refuse(way, data.message);
    if (kind === "end") article.querySelector(".compared").innerHTML = data.html;
  }

  async function ask(modes) {
    if (!form.reportValidity() || running) return;
    const sent = Object.fromEntries(new FormData(form)), question = sent.question.trim();
    const body = { question, modes, max_tokens: Number(sent.max_tokens) || 64 };
    if (sent.k) body.k = Number(sent.k);
    if (sent.ke) body.ke = sent.ke;
    last = { question, modes };
    const shown = shell(question, modes);
    running = new AbortController();
    busy(true);
    try {
      const json = { "Content-Type": "application/json" };
      const response = await km.send("POST", form.dataset.to, JSON.stringify(body), json, running.signal);
      for await (const event of events(response)) show(shown, event);
    } catch (error) {
      const why = error.name === "AbortError" ? "Stopped." : error.message;
      for (const way of shown.ways.values()) if (way.ariaBusy) refuse(way, why);
    }
    for (const way of shown.ways.values()) if (way.ariaBusy) refuse(way, "The answer was cut short.");
    running = null;
    busy(false);
  }

  function busy(is) {
    stop.hidden = !is;
    for (const button of buttons) button.disabled = is;
  }

  form.addEventListener("submit", (event) => { event.preventDefault(); ask([form.mode.value]); });
  buttons[1].addEventListener("click", () => ask(buttons[1].dataset.modes.split(" ")));
  stop.addEventListener("click", () => running?.abort());
  form.question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); form.requestSubmit(); }
  });
  for (const one of form.querySelectorAll(".try")) {
    one.addEventListener("click", () => { form.question.value = one.textContent; form.requestSubmit(); });
  }

  // As soon as there is a KM, what was asked before can be asked again with it.
  document.addEventListener("htmx:oobBeforeSwap", (event) => {
    if (event.target.id !== "hint") return;
    const before = event.target.dataset.km, now = event.detail.fragment.querySelector("#hint").dataset.km;
    if (!now || now === before) return;
    if (!last) return km.notice("The KM is trained and answers now.");
    km.notice("The KM is trained and answers now.", {
      label: "Ask again", run: () => { form.question.value = last.question; ask(["km"]); },
    });
  });
})();
