package sandbox

// A Fact is one property of the host that a sandbox depends on.
type Fact struct {
	Name   string `json:"name"`
	State  State  `json:"state"`
	Detail string `json:"detail,omitempty"`
	Fix    string `json:"fix,omitempty"` // what to change; empty if nothing has to
}

// A State is what is known of a Fact. The zero State is unknown.
type State string

// The states. Present means seen and not proven to work.
const (
	Works   State = "works"
	Present State = "present"
	Absent  State = "absent"
	Unknown State = "unknown"
)

// A Doctor is what `pvault doctor` prints about isolation on this host.
type Doctor struct {
	Backends []Report `json:"backends"` // one per backend, those that are not built in included
	Host     []Fact   `json:"host"`
}

// NotBuilt is the report of a backend that this version does not hold.
func NotBuilt(backend string) Report {
	return Report{Backend: backend, Layers: []LayerState{{Layer: Layer(backend), Detail: "not built in this version"}}}
}
