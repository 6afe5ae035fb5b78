package evidence

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pilox/vault/internal/vaulttest"
)

// TestPageVerifiesInABrowser builds the page, opens it from the disk in a headless
// Chromium without a network, drops bundles on it, and runs the whole table in it.
func TestPageVerifiesInABrowser(t *testing.T) {
	var browser string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			browser = path
			break
		}
	}
	if browser == "" {
		vaulttest.Missing(t, "chromium", "chromium is not there")
	}
	dir, rows := writeTable(t)
	build := exec.Command("go", "run", "./build", "-C", ".", "-o", dir)
	build.Dir = "../contrib/verify-page"
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the page: %v\n%s", err, out)
	}
	c := startChromium(t, browser)
	c.call("Page.enable", nil)
	c.call("Log.enable", nil)
	c.call("Network.enable", nil)
	c.call("Network.emulateNetworkConditions", map[string]any{"offline": true, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0})
	c.call("Page.navigate", map[string]any{"url": "file://" + filepath.Join(dir, "index.html")})
	c.until(`document.body && document.body.dataset.ready === "yes"`)

	// A person drops a bundle on the page, pastes the key, and reads the answer.
	find := func(name string) *tableRow {
		i := slices.IndexFunc(rows, func(r tableRow) bool { return r.Name == name })
		if i < 0 {
			t.Fatalf("no row %q", name)
		}
		return &rows[i]
	}
	drop := func(file string) {
		for _, kind := range []string{"dragEnter", "dragOver", "drop"} {
			c.call("Input.dispatchDragEvent", map[string]any{
				"type": kind, "x": 400, "y": 300, "data": map[string]any{"items": []any{}, "files": []string{filepath.Join(dir, file)}, "dragOperationsMask": 1},
			})
		}
	}
	verdict := `document.getElementById("verdict").textContent`
	sound := find("anchored by witnesses and Rekor")
	drop(sound.Bundle)
	c.until(verdict + `.startsWith("UNPINNED")`)
	fill := func(id, text string) {
		c.eval(fmt.Sprintf(`{const e = document.getElementById(%q); e.value = %q; e.dispatchEvent(new Event("input"))}`, id, text))
	}
	fill("keys", sound.Keys[0])
	c.until(verdict + `.startsWith("OK")`)
	fill("policy", sound.Policy)
	fill("rekor", sound.Rekor[0])
	c.until(`document.getElementById("anchored").textContent.includes("rekor.test")`)
	c.until(`document.getElementById("before").textContent.includes("2027-01-15")`)
	c.shot("ok")
	fill("policy", "")
	fill("rekor", "")

	// One flipped byte of it, in record 6.
	flipped := slices.Clone(sound.data)
	at := strings.Index(string(flipped), `"idx":6,`)
	flipped[at-30] ^= 1
	if err := os.WriteFile(filepath.Join(dir, "flipped.zip"), flipped, 0o600); err != nil {
		t.Fatal(err)
	}
	drop("flipped.zip")
	c.until(verdict + `.startsWith("ALTERED at record 6:")`)
	c.until(`document.getElementById("intact").textContent.includes("no, at record 6")`)
	c.shot("flipped")

	for i := range rows {
		r := &rows[i]
		form, err := json.Marshal(map[string]string{
			"Keys": strings.Join(r.Keys, " "), "Since": r.Since, "Run": r.Run, "Newer": r.NewerThan, "Policy": r.Policy, "Rekor": strings.Join(r.Rekor, "\n"), "TSA": r.TSA,
		})
		if err != nil {
			t.Fatal(err)
		}
		text := c.eval(fmt.Sprintf(`vaultVerify(Uint8Array.from(atob(%q), c => c.charCodeAt(0)), %q)`, base64.StdEncoding.EncodeToString(r.data), form))
		var a struct {
			Report Report
			Error  string
		}
		if err := json.Unmarshal([]byte(text), &a); err != nil || a.Error != "" {
			t.Fatalf("%s: %v %s", r.Name, err, a.Error)
		}
		if got := a.Report; got.Problem != r.Problem || got.Exit != r.Exit || (got.Record == nil) != (r.Record == nil) || got.Record != nil && *got.Record != *r.Record {
			t.Errorf("%s: want %s:\n%s", r.Name, r.Problem, got)
		}
	}
	for _, url := range c.requests {
		if !strings.HasPrefix(url, "file://"+dir) {
			t.Errorf("the page asked for %s", url)
		}
	}
	if len(c.requests) != 1 {
		t.Errorf("want one request, of the page itself: %q", c.requests)
	}
	if len(c.complaints) > 0 {
		t.Errorf("the browser complained: %q", c.complaints)
	}
}

// chromium speaks the DevTools protocol over a pipe, so that it works without any
// network, the loopback included.
type chromium struct {
	t          *testing.T
	to         io.Writer
	from       *bufio.Reader
	id         int
	session    string
	requests   []string
	complaints []string
}

func startChromium(t *testing.T, path string) *chromium {
	t.Helper()
	profile, err := os.MkdirTemp("", "pvpage")
	if err != nil {
		t.Fatal(err)
	}
	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{
		path, "--remote-debugging-pipe", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=820,1180", "--user-data-dir=" + profile, "about:blank",
	}
	// Root can take the network away altogether.
	if unshare, err := exec.LookPath("unshare"); err == nil && exec.Command(unshare, "-n", "true").Run() == nil {
		args = append([]string{unshare, "-n"}, args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.ExtraFiles = []*os.File{inR, outW} // descriptors 3 and 4, as the flag has it
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	inR.Close()
	outW.Close()
	c := &chromium{t: t, to: inW, from: bufio.NewReaderSize(outR, 1<<20)}
	t.Cleanup(func() {
		_, _ = io.WriteString(inW, `{"id":999999,"method":"Browser.close"}`+"\x00")
		done := make(chan struct{})
		go func() { _ = cmd.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill()
			<-done
		}
		inW.Close()
		outR.Close()
		_ = os.RemoveAll(profile) // its helpers may still be writing
	})
	// A browser that hangs must not hang the test: its pipe is closed under it.
	stop := time.AfterFunc(3*time.Minute, func() { outR.Close() })
	t.Cleanup(func() { stop.Stop() })
	target := c.call("Target.createTarget", map[string]any{"url": "about:blank"})["targetId"]
	c.session, _ = c.call("Target.attachToTarget", map[string]any{"targetId": target, "flatten": true})["sessionId"].(string)
	return c
}

func (c *chromium) call(method string, params map[string]any) map[string]any {
	c.t.Helper()
	c.id++
	m := map[string]any{"id": c.id, "method": method, "params": params}
	if params == nil {
		m["params"] = map[string]any{}
	}
	if c.session != "" {
		m["sessionId"] = c.session
	}
	b, err := json.Marshal(m)
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.to.Write(append(b, 0)); err != nil {
		c.t.Fatal(err)
	}
	for {
		b, err := c.from.ReadBytes(0)
		if err != nil {
			c.t.Fatalf("%s: chromium: %v", method, err)
		}
		var r struct {
			ID     int
			Method string
			Params struct {
				Request struct{ URL string }
				Entry   struct{ Text string }
			}
			Result map[string]any
			Error  *struct{ Message string }
		}
		if err := json.Unmarshal(b[:len(b)-1], &r); err != nil {
			c.t.Fatal(err)
		}
		switch {
		case r.Method == "Network.requestWillBeSent":
			c.requests = append(c.requests, r.Params.Request.URL)
		case r.Method == "Log.entryAdded":
			c.complaints = append(c.complaints, r.Params.Entry.Text)
		case r.ID == c.id && r.Error != nil:
			c.t.Fatalf("%s: %s", method, r.Error.Message)
		case r.ID == c.id && r.Method == "":
			return r.Result
		}
	}
}

// eval returns the value of an expression as text.
func (c *chromium) eval(expression string) string {
	c.t.Helper()
	r := c.call("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true})
	if e, ok := r["exceptionDetails"]; ok {
		c.t.Fatalf("the page failed: %v", e)
	}
	result, _ := r["result"].(map[string]any)
	return fmt.Sprint(result["value"])
}

// until waits for a condition to hold on the page.
func (c *chromium) until(condition string) {
	c.t.Helper()
	end := time.Now().Add(time.Minute)
	for c.eval(`Boolean(`+condition+`)`) != "true" {
		if time.Now().After(end) {
			c.t.Fatalf("the page never had %s:\n%s", condition, c.eval("document.body.innerText"))
		}
		c.call("Runtime.evaluate", map[string]any{"expression": "new Promise(r => setTimeout(r, 50))", "awaitPromise": true})
	}
}

// shot keeps a picture of the page where PVAULT_SHOTS names a directory.
func (c *chromium) shot(name string) {
	dir := os.Getenv("PVAULT_SHOTS")
	if dir == "" {
		return
	}
	for _, scheme := range []string{"light", "dark"} {
		c.call("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}})
		png, _ := c.call("Page.captureScreenshot", map[string]any{"format": "png"})["data"].(string)
		raw, err := base64.StdEncoding.DecodeString(png)
		if err != nil {
			c.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name+"-"+scheme+".png"), raw, 0o600); err != nil {
			c.t.Fatal(err)
		}
	}
}
