"use strict";
// The pages work without this file, but for uploads. With it, what a form changes is replaced in its place.

const said = () => document.getElementById("said");

async function replace(form, submitter) {
  const target = form.dataset.live, fields = new URLSearchParams(new FormData(form, submitter));
  const reading = form.method === "get", address = reading ? `${form.action}?${fields}` : form.action;
  const answer = await fetch(address, { method: form.method, body: reading ? undefined : fields, headers: { "X-Fragment": target } });
  const text = await answer.text();
  if (!answer.ok) {
    said().textContent = text;
    return;
  }
  // What the server sends is a part of this very page, escaped there.
  const part = new DOMParser().parseFromString(text, "text/html").getElementById(target);
  if (part) document.getElementById(target).replaceWith(part);
  said().textContent = "";
}

// One request at a time: of two at once the older one might be answered last.
const busy = new WeakMap();
async function follow(form) {
  if (busy.has(form)) return busy.set(form, true);
  do {
    busy.set(form, false);
    try {
      await replace(form);
    } catch (error) {
      said().textContent = `The page does not answer: ${error.message}`;
    }
  } while (busy.get(form));
  busy.delete(form);
}

let waiting;
document.addEventListener("input", (event) => {
  const form = event.target.closest("form[data-live]");
  if (form && !("byButton" in form.dataset)) {
    clearTimeout(waiting);
    waiting = setTimeout(() => follow(form), 80);
  }
  if (event.target.matches("[data-submit]")) event.target.form.submit();
});

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.matches("[data-upload]")) {
    event.preventDefault();
    upload(form);
  } else if (form.matches("[data-live]") && !(event.submitter && "plain" in event.submitter.dataset)) {
    event.preventDefault();
    replace(form, event.submitter);
  }
});

// A page that follows something is told when that has changed, and asks for its part again.
const following = document.querySelector("[data-follow]");
if (following) {
  const told = new EventSource(following.dataset.follow);
  told.addEventListener("changed", async () => {
    if (following.querySelector("details[open], :focus")) return; // somebody is reading or choosing: at the next change
    const answer = await fetch(following.dataset.from, { headers: { "X-Fragment": "now" } });
    if (!answer.ok) return;
    const part = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("now");
    if (part) document.getElementById("now").replaceWith(part);
  });
}

async function upload(form) {
  const file = form.querySelector("input[type=file]").files[0];
  said().textContent = `Taking in ${file.name}`;
  const answer = await fetch(form.action, { method: "POST", body: file, headers: { "X-Fragment": "said" } });
  if (answer.ok) location.assign(answer.url);
  else said().textContent = await answer.text();
}
