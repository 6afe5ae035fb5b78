package oauth

import (
	"bytes"
	"compress/zlib"
	"crypto/ed25519"
	"encoding/base64"
	"testing"
	"time"
)

// TestStatusList signs a list and reads it back, bit by bit.
func TestStatusList(t *testing.T) {
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	var l StatusList
	for i := range 1000 {
		if err := l.Set(i, i%7 == 0); err != nil {
			t.Fatal(err)
		}
	}
	token, err := l.Sign(key, "k", "https://status.example/1", testNow, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	got, uri, err := ParseStatusList(token, public, testNow)
	if err != nil || uri != "https://status.example/1" {
		t.Fatal(uri, err)
	}
	for i := range 1000 {
		if r, err := got.Revoked(i); err != nil || r != (i%7 == 0) {
			t.Fatalf("status %d is %v, %v", i, r, err)
		}
	}
	if _, err := got.Revoked(1000); err == nil {
		t.Error("a status beyond the list")
	}
	if _, _, err := ParseStatusList(token, public, testNow.Add(time.Hour)); err == nil {
		t.Error("an expired list counts")
	}
	other, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := ParseStatusList(token, other, testNow); err == nil {
		t.Error("a list of another key counts")
	}
}

// TestStatusVector reads the one-bit example of draft-ietf-oauth-status-list,
// section 4.1: sixteen statuses in two bytes.
func TestStatusVector(t *testing.T) {
	l, err := unpack("eNrbuRgAAhcBXQ")
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []int{1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0, 1, 0, 1} {
		if r, err := l.Revoked(i); err != nil || r != (want == 1) {
			t.Errorf("status %d is %v, %v; want %d", i, r, err, want)
		}
	}
}

// TestStatusBomb holds the bound on what a list unpacks to.
func TestStatusBomb(t *testing.T) {
	var b bytes.Buffer
	z := zlib.NewWriter(&b)
	block := make([]byte, 1<<16)
	for range maxStatuses/8/len(block) + 1 {
		if _, err := z.Write(block); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := unpack(base64.RawURLEncoding.EncodeToString(b.Bytes())); err == nil {
		t.Error("unpacked")
	}
}

// FuzzStatusList holds that no list panics and that none grows beyond its bound.
func FuzzStatusList(f *testing.F) {
	f.Add("eNrbuRgAAhcBXQ")
	f.Add("")
	f.Fuzz(func(t *testing.T, list string) {
		l, err := unpack(list)
		if err != nil {
			return
		}
		if l.Len() > maxStatuses {
			t.Errorf("%d statuses", l.Len())
		}
		if _, err := l.Revoked(l.Len()); err == nil {
			t.Error("a status beyond the list")
		}
	})
}
