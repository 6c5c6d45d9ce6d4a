// What the page asks of its server. Every request carries the token of this start.

const KEY = "token";
const fragment = location.hash.slice(1);
if (/^[\w-]{20,}$/.test(fragment)) {
  localStorage.setItem(KEY, fragment);
  history.replaceState(null, "", location.pathname);
}

export class Refusal extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

export const hasToken = () => Boolean(localStorage.getItem(KEY));
export const setToken = token => localStorage.setItem(KEY, token);

// The answer to a request; what is no success is thrown as a sentence for the person.
export async function ask(path, options = {}) {
  const headers = { ...options.headers, "X-Token": localStorage.getItem(KEY) || "" };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Refusal(0, "The server does not answer. Is python app.py still running?");
  }
  if (answer.ok) return answer;
  const text = await answer.json().then(body => body.error, () => `The server answered ${answer.status}.`);
  throw new Refusal(answer.status, text);
}

export const get = async path => (await ask(path)).json();

export async function post(path, content = {}) {
  const headers = { "Content-Type": "application/json" };
  const answer = await ask(path, { method: "POST", headers, body: JSON.stringify(content) });
  return answer.status === 204 ? null : answer.json();
}

// A file as the body of a request, with its name beside it.
export const put = async (path, file, more = {}) =>
  (await ask(`${path}?${new URLSearchParams({ name: file.name, ...more })}`, { method: "PUT", body: file })).json();

export const blobOf = async path => (await ask(path)).blob();

// The address of a file that the browser opens by itself.
export const ticket = async (what, id) => (await post("/api/tickets", { what, id })).url;
