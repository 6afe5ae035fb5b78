package process

import (
	"os/exec"
	"testing"
	"time"
)

func BenchmarkStart(b *testing.B) {
	r := jail(b)
	var mounts, restrict, began time.Duration
	n := 0
	for b.Loop() {
		p, err := r.Start(b.Context(), Spec{Argv: self("exit", "0")})
		if err != nil {
			b.Fatal(err)
		}
		s := p.Stats()
		mounts, restrict, began, n = mounts+s.Mounts, restrict+s.Restrict, began+s.Start, n+1
		p.Wait()
		p.Close()
	}
	b.ReportMetric(float64(mounts.Nanoseconds())/float64(n), "mounts-ns")
	b.ReportMetric(float64(restrict.Nanoseconds())/float64(n), "restrict-ns")
	b.ReportMetric(float64(began.Nanoseconds())/float64(n), "start-ns")
}

// BenchmarkExec is the same program without a jail.
func BenchmarkExec(b *testing.B) {
	for b.Loop() {
		if err := exec.Command(self()[0], "guest", "exit", "0").Run(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkKill(b *testing.B) {
	r := jail(b)
	for b.Loop() {
		b.StopTimer()
		p := start(b, b.Context(), r, Spec{Argv: self("spin")})
		b.StartTimer()
		p.Kill()
		p.Wait()
		b.StopTimer()
		p.Close()
		b.StartTimer()
	}
}

func BenchmarkSelfTest(b *testing.B) {
	r := jail(b)
	for b.Loop() {
		if _, err := r.SelfTest(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
