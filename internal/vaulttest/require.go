package vaulttest

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// Required reports whether PVAULT_REQUIRE, a comma list, names what: node, npm,
// chromium, python, sandbox, conformance, postgres, ocsf, collector and the like. Where it does, a test that lacks it fails instead of
// being skipped.
func Required(what string) bool {
	return slices.Contains(strings.Split(os.Getenv("PVAULT_REQUIRE"), ","), what)
}

// Missing ends a test that lacks what: aloud as skipped, or as failed where
// PVAULT_REQUIRE names it.
func Missing(t testing.TB, what, why string) {
	t.Helper()
	if Required(what) {
		t.Fatalf("PVAULT_REQUIRE names %s: %s", what, why)
	}
	t.Skipf("NOT RUN: %s (PVAULT_REQUIRE=%s makes this a failure)", why, what)
}
