package gateway

import (
	"context"
	"time"

	"github.com/pilox/vault"
)

// A Meter counts what becomes of calls. Its methods are on the path of every call
// and return at once; what they do changes nothing about it.
type Meter interface {
	// Call counts a call that has ended: err is nil or a *vault.Denial. What f says of
	// the tool is the catalogue's word, and zero where the call did not get that far.
	Call(f *vault.Facts, err error, took time.Duration)
	// Stranger counts a request that was refused before it was a call.
	Stranger(code vault.Code)
}

// A Tracer follows single calls through the stages. Its methods return at once.
type Tracer interface {
	// Start begins to follow a call. The context it returns says which.
	Start(ctx context.Context, call *vault.Call) context.Context
	// Stage says that the call of ctx enters a stage, which ends the one before.
	Stage(ctx context.Context, s Stage)
	// End is called once for every Start: err is nil or a *vault.Denial.
	End(ctx context.Context, f *vault.Facts, err error)
}

// A Stage is a part of the way of a call.
type Stage string

// The stages, in order. A call whose arguments a stage replaced passes from Resolve
// to Scan twice.
const (
	StageVerify  Stage = "verify"
	StageResolve Stage = "resolve"
	StageCheck   Stage = "check"
	StageDecide  Stage = "decide"
	StageScan    Stage = "scan"
	StageApprove Stage = "approve"
	StageAdmit   Stage = "admit"
	StageRun     Stage = "run"
	StageRelease Stage = "release"
)
