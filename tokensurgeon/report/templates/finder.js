// Searches the made rows of each tensor. Everything is shown as text; without this script a sample stays.
"use strict";
for (const finder of document.querySelectorAll(".finder")) {
  const { texts, rows } = JSON.parse(finder.querySelector("script").textContent);
  const [query, worstFirst] = finder.querySelectorAll("input");
  const body = finder.querySelector("tbody");
  const said = finder.querySelector(".said");
  const sample = { body: [...body.rows], said: said.textContent };
  const most = 200;

  const plain = (text) => text.replaceAll("␣", " ").toLowerCase();
  // Typed as in a program, newline and tab are found as the page shows them.
  const typed = (text) => plain(text.replaceAll("\\n", "⏎").replaceAll("\\t", "⇥"));
  const token = (text) => {
    const code = document.createElement("code");
    code.dir = "auto";
    code.textContent = text;
    return code;
  };
  const decimal = (number) => String(Number(number.toPrecision(4)));

  const show = ([id, text, method, residual, parts]) => {
    const row = document.createElement("tr");
    const cells = [[id], [token(text)], [method], [residual === null ? "–" : decimal(residual)], []];
    for (const [place, weight] of parts) {
      const part = document.createElement("span");
      part.append(token(texts[place]), " " + decimal(weight));
      cells[4].push(part, " ");
    }
    cells.forEach((contents, column) => {
      const cell = row.insertCell();
      cell.className = ["n", "", "", "n", "made"][column];
      cell.append(...contents);
    });
    return row;
  };

  const search = () => {
    const wanted = typed(query.value);
    if (!wanted && !worstFirst.checked) {
      body.replaceChildren(...sample.body);
      said.textContent = sample.said;
      return;
    }
    const found = rows.filter(([id, text]) => plain(text).includes(wanted) || String(id) === wanted);
    if (worstFirst.checked) found.sort((one, other) => (other[3] ?? -1) - (one[3] ?? -1));
    body.replaceChildren(...found.slice(0, most).map(show));
    const shown = found.length > most ? `, the first ${most} of them here` : "";
    said.textContent = `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows${shown}.`;
  };

  query.addEventListener("input", search);
  worstFirst.addEventListener("input", search);
  worstFirst.parentElement.hidden = rows.every(([, , , residual]) => residual === null);
  finder.querySelector(".search").hidden = false;
}
