"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const fields = ["keys", "since", "run", "newer", "policy", "rekor", "tsa"];
  const most = 256 * 1024 * 1024; // of a bundle; larger ones are for the command
  let bundle = null;

  // The program lies in the page, compressed, so that nothing is fetched.
  const ready = (async () => {
    const packed = Uint8Array.from(atob($("program").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const go = new Go();
    const program = await WebAssembly.instantiate(await new Response(stream).arrayBuffer(), go.importObject);
    go.run(program.instance);
    document.body.dataset.ready = "yes";
  })();

  const say = (text, kind) => {
    $("result").hidden = false;
    $("verdict").textContent = text;
    $("verdict").className = kind;
  };
  const tell = (id, text, kind) => {
    const dd = $(id).querySelector("dd");
    dd.textContent = text;
    dd.className = kind;
  };

  const verify = async () => {
    if (!bundle) return;
    const form = {};
    for (const f of fields) form[f] = $(f).value;
    try {
      await ready;
      const answer = JSON.parse(vaultVerify(bundle, JSON.stringify(form)));
      if (answer.error) throw new Error(answer.error);
      show(answer.report, answer.text);
    } catch (e) {
      for (const id of ["intact", "complete", "anchored", "before"]) tell(id, "not known", "mid");
      $("window").textContent = $("report").textContent = "";
      say(String(e.message || e), "bad");
    }
  };

  const show = (r, text) => {
    const at = r.record === undefined ? "" : " at record " + r.record;
    const detail = r.detail ? ": " + r.detail : "";
    if (r.problem === "ok") say("OK: intact and complete, signed by the key you gave", "ok");
    else say(r.problem.replace("_", " ").toUpperCase() + at + detail, r.exit === 21 || r.exit === 40 ? "mid" : "bad");
    tell("intact", r.intact ? "yes, " + r.records + " records" : "no" + (at && "," + at), r.intact ? "ok" : "bad");
    tell("complete", !r.intact ? "not known" : r.complete ? "yes, as of checkpoint " + r.size : "no, later records may exist",
      r.intact && r.complete ? "ok" : "mid");
    tell("anchored", !r.window ? "not looked at" : r.anchored_by.length ? r.anchored_by.join("; ") : "nobody you named", r.anchored_by.length ? "ok" : "mid");
    tell("before", r.before || "not proven by anyone outside", r.before ? "ok" : "mid");
    $("window").textContent = r.window ? "Window: " + r.window : "";
    $("report").textContent = text;
  };

  const take = async (file) => {
    if (!file) return;
    if (file.size > most) {
      bundle = null;
      say(file.name + " is larger than this page takes; use pvault audit verify", "bad");
      return;
    }
    $("name").textContent = file.name + ", " + file.size.toLocaleString("en") + " bytes";
    bundle = new Uint8Array(await file.arrayBuffer());
    await verify();
  };

  $("file").addEventListener("change", (e) => take(e.target.files[0]));
  for (const f of fields) $(f).addEventListener("input", verify);
  for (const type of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(type, (e) => {
      e.preventDefault(); // anywhere on the page, or the browser would open the file
      $("drop").classList.toggle("over", type === "dragover");
      if (type === "drop") take(e.dataTransfer.files[0]);
    });
  }
})();
