// Sends the prompt of the form, and shows the answer as it comes. The form's `data-url` is where to.

const form = document.getElementById("ask");
const answer = document.getElementById("answer");
const state = document.getElementById("state");
const stop = document.getElementById("stop");
const submit = form.querySelector("[type=submit]");
let running = null;

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running) {
    ask();
  }
});
stop.addEventListener("click", () => running?.abort());

async function ask() {
  running = new AbortController();
  show("Waiting for the first token ...");
  answer.textContent = "";
  try {
    show(await stream(running.signal));
  } catch (error) {
    show(error.name === "AbortError" ? "Stopped." : error.message);
  }
  running = null;
  submit.disabled = false;
  stop.disabled = true;
}

function show(text) {
  state.textContent = text;
  submit.disabled = Boolean(running);
  stop.disabled = !running;
}

// Show the tokens of an answer, and return what to say behind the last one.
async function stream(signal) {
  const headers = { "Content-Type": "application/json", "X-On-Disconnect": "cancel" };
  const fields = new FormData(form);
  if (fields.get("key")) {
    headers.Authorization = `Bearer ${fields.get("key")}`;
  }
  const body = { prompt: fields.get("prompt"), max_tokens: 512, stream: true };
  if (fields.get("model")) {
    body.model = fields.get("model");
  }
  const request = { method: "POST", headers, body: JSON.stringify(body), signal };
  const response = await fetch(form.dataset.url, request);
  if (!response.ok) {
    throw new Error(await refusal(response));
  }

  const begun = performance.now();
  for await (const data of events(response.body)) {
    if (data === "[DONE]") {
      return `Done in ${((performance.now() - begun) / 1000).toFixed(2)} s.`;
    }
    const event = JSON.parse(data);
    if (event.error) {
      throw new Error(event.error.message);
    }
    answer.append(event.choices?.[0]?.text ?? "");
    show("Writing ...");
  }
  throw new Error("The answer broke off.");
}

async function refusal(response) {
  const body = await response.json().catch(() => ({}));
  return body.error?.message ?? `The server answered with status ${response.status}.`;
}

// Yield the data of each event in a body.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (true) {
    const { value, done } = await reader.read();
    if (done) {
      return;
    }
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ")) {
        yield line.slice("data: ".length);
      }
    }
  }
}
