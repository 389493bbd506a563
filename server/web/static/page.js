// What every page does beside its HTML. Nothing here runs from a string: the page allows no inline script.
"use strict";

const km = {
  token: () => document.querySelector('meta[name="csrf"]')?.content ?? "",

  // Says something for a while, with a button if there is something to do about it.
  notice(text, action) {
    const box = document.createElement("div");
    box.className = "notice";
    const said = document.createElement("p");
    said.textContent = text;
    box.append(said);
    const close = document.createElement("button");
    close.textContent = action ? action.label : "Close";
    close.addEventListener("click", () => { box.remove(); action?.run(); });
    box.append(close);
    document.getElementById("notices").replaceChildren(box);
    if (!action) setTimeout(() => box.remove(), 12000);
  },

  // A request of ours; the answer, or an error that says what the server said.
  async send(method, place, body, headers = {}, signal = undefined) {
    let response;
    try {
      response = await fetch(place, {
        method, body, signal, headers: { "X-CSRF-Token": km.token(), ...headers }, credentials: "same-origin",
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server cannot be reached. Try again in a moment.");
    }
    if (response.status === 401) location.assign("/ui/sign-in");
    if (!response.ok) throw new Error(await km.refusal(response.text()));
    return response;
  },

  // What an error's body says.
  async refusal(text) {
    try { return JSON.parse(await text).error.message; } catch { return "Something went wrong. Try again."; }
  },
};

// --- moments in the reader's own time ---

const format = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
function localTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    time.title = time.textContent;
    time.textContent = format.format(new Date(time.dateTime));
  }
}
localTimes(document);
document.addEventListener("htmx:load", (event) => localTimes(event.detail.elt));

// --- htmx ---

document.addEventListener("htmx:configRequest", (event) => {
  event.detail.headers["X-CSRF-Token"] = km.token();
});
document.addEventListener("htmx:beforeRequest", (event) => {
  // Nobody looks: what is asked for time and again is asked for when somebody does.
  if (document.hidden && event.detail.elt.matches('[hx-trigger^="every"]')) event.preventDefault();
});
document.addEventListener("htmx:responseError", async (event) => {
  if (event.detail.xhr.getResponseHeader("HX-Redirect")) return;
  km.notice(await km.refusal(event.detail.xhr.responseText));
});
document.addEventListener("htmx:sendError", () => km.notice("The server cannot be reached. Try again in a moment."));

// --- dialogs, keys to copy ---

document.addEventListener("click", async (event) => {
  const opens = event.target.closest("[data-opens]");
  if (opens) document.getElementById(opens.dataset.opens).showModal();
  if (event.target.closest("[data-closes]")) event.target.closest("dialog").close();
  const copies = event.target.closest("[data-copies]");
  if (copies) {
    await navigator.clipboard.writeText(document.getElementById(copies.dataset.copies).textContent);
    copies.textContent = "Copied";
  }
});

// --- signing in by the link that the server printed: the key comes after the #, which is never sent ---

if (/^#km_[\w-]+$/.test(location.hash)) {
  const signIn = document.getElementById("sign-in"), key = location.hash.slice(1);
  history.replaceState(null, "", location.pathname);
  if (signIn) {
    signIn.key.value = key;
    signIn.submit();
  }
}

// --- uploads ---

async function upload(name, method, place, bodyOf, headers) {
  const uploads = document.getElementById("uploads");
  const line = document.createElement("li");
  line.textContent = `Reading ${name} …`;
  uploads.append(line);
  try {
    const sent = await (await km.send(method, place, bodyOf(recipe()), headers)).json();
    line.textContent = "";
    const link = document.createElement("a");
    link.href = sent.place;
    link.textContent = sent.title;
    line.append(link, sent.created ? " is in; its KM is being trained." : " was here already.");
    return sent.place;
  } catch (error) {
    line.className = "bad";
    line.textContent = `${name}: ${error instanceof SyntaxError ? "The fields of the recipe are not JSON." : error.message}`;
    return null;
  }
}

// What the form says about the training; nothing where it says nothing.
function recipe() {
  const fields = document.getElementById("recipe")?.value.trim(), preset = document.getElementById("preset")?.value;
  const made = fields ? JSON.parse(fields) : {};
  return preset && preset !== "default" ? { preset, ...made } : made;
}

async function uploadFiles(files, method, place) {
  let last = null;
  for (const file of files) {
    last = await upload(file.name, method, place, (recipe) => {
      const body = new FormData();
      body.append("file", file, file.name);
      if (Object.keys(recipe).length) body.append("recipe", JSON.stringify(recipe));
      return body;
    });
  }
  if (files.length === 1 && last) location.assign(last);
  else if (document.getElementById("list")) htmx.ajax("GET", "/ui/rows", { target: "#list", swap: "outerHTML" });
}

const drop = document.getElementById("drop");
if (drop) {
  const place = drop.dataset.to ?? "/ui/documents", method = drop.dataset.method ?? "POST";
  const files = document.getElementById("files");
  files.addEventListener("change", async () => { await uploadFiles([...files.files], method, place); files.value = ""; });
  let inside = 0;
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      if (kind === "dragenter") inside += 1;
      if (kind === "dragleave") inside -= 1;
      if (kind === "drop") { inside = 0; uploadFiles([...event.dataTransfer.files], method, place); }
      drop.classList.toggle("over", inside > 0);
    });
  }
}

document.getElementById("paste")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { title, text } = Object.fromEntries(new FormData(event.target));
  const json = { "Content-Type": "application/json" };
  const place = await upload(title, "POST", "/ui/documents", (recipe) => JSON.stringify({ title, text, recipe }), json);
  if (place) location.assign(place);
});
