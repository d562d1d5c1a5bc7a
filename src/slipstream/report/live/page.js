
"use strict";
const run = document.getElementById("run"), link = document.getElementById("link");
const source = new EventSource("events");
source.addEventListener("page", (event) => {
  const open = [...run.querySelectorAll("details")].map((element) => element.open);
  run.innerHTML = JSON.parse(event.data);
  run.querySelectorAll("details").forEach((element, place) => { element.open = Boolean(open[place]); });
  link.textContent = "Live: this page follows the training.";
});
source.addEventListener("done", (event) => {
  source.close();
  link.textContent = JSON.parse(event.data);
});
source.onerror = () => { link.textContent = "No connection: is slipstream watch still running?"; };
