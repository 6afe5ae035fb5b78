package process

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

func TestViewForNamesWhatTheLoaderNeeds(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("ELF programs run on Linux")
	}
	sh, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil {
		t.Skipf("SKIPPED, NOTHING PROVEN: %v", err)
	}
	ms, interp, err := viewFor(sh)
	if err != nil {
		t.Fatal(err)
	}
	if interp == "" {
		t.Skip("SKIPPED, NOTHING PROVEN: the shell is static")
	}
	has := func(what string) bool {
		return slices.ContainsFunc(ms, func(m Mount) bool { return strings.Contains(m.Guest, what) })
	}
	if !has(sh) || !has(interp) || !has("libc.") {
		t.Errorf("view of %s: %v", sh, ms)
	}
	for _, m := range ms {
		if _, err := os.Stat(m.Host); err != nil {
			t.Error(err)
		}
	}
}

func TestViewForRefuses(t *testing.T) {
	d := t.TempDir()
	script := filepath.Join(d, "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, program string
		want          error
	}{
		{"a script", script, ErrNotELF},
		{"a directory", d, ErrNotELF},
		{"a device", os.DevNull, ErrNotELF},
		{"nothing", filepath.Join(d, "none"), os.ErrNotExist},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if ms, _, err := viewFor(tt.program); !errors.Is(err, tt.want) {
				t.Errorf("%v, %v", ms, err)
			}
		})
	}
	if _, _, err := viewFor("relative"); err == nil {
		t.Error("took a relative path")
	}
}

func TestParseConf(t *testing.T) {
	dirs, include := parseConf(strings.NewReader("# comment\n/a/../b # why\ninclude conf.d/*.conf\ninclude\t/x\nrelative\n\nincluded\n"))
	if !slices.Equal(dirs, []string{"/b"}) || !slices.Equal(include, []string{"conf.d/*.conf", "/x"}) {
		t.Errorf("%q %q", dirs, include)
	}
}

func FuzzParseConf(f *testing.F) {
	f.Add("include /etc/ld.so.conf.d/*.conf\n/usr/local/lib\n")
	f.Fuzz(func(t *testing.T, s string) {
		dirs, _ := parseConf(strings.NewReader(s))
		for _, d := range dirs {
			if !filepath.IsAbs(d) || filepath.Clean(d) != d {
				t.Fatalf("directory %q", d)
			}
		}
	})
}

func FuzzParseHeader(f *testing.F) {
	if exe, err := os.ReadFile("/bin/true"); err == nil {
		f.Add(exe[:min(len(exe), 64<<10)])
	}
	f.Add([]byte("\x7fELF\x02\x01\x01"))
	f.Add([]byte("#!/bin/sh\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHeader(bytes.NewReader(b))
		if err != nil {
			if !errors.Is(err, ErrNotELF) {
				t.Fatal(err)
			}
			return
		}
		if h.interp != "" && (!filepath.IsAbs(h.interp) || filepath.Clean(h.interp) != h.interp) || len(h.needed) > maxLibraries {
			t.Fatalf("%+v", h)
		}
	})
}

func FuzzReadOrders(f *testing.F) {
	f.Add([]byte(`{"argv":["/bin/true"],"views":[{"host":"/a","guest":"/b"}],"landlock":7}`))
	f.Add([]byte(`{"unknown":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := readOrders(bytes.NewReader(b)); err == nil && len(b) > maxOrders {
			t.Fatal("took orders beyond the bound")
		}
	})
}
