package sink

import (
	"strconv"
	"strings"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

// ocsfVersion is the version of the schema that events are in.
const ocsfVersion = "1.8.0"

// An ocsfEvent is an event in the Open Cybersecurity Schema Framework. The members
// are attributes of its classes, under their names there.
type ocsfEvent struct {
	ActivityID   int           `json:"activity_id"`
	ActivityName string        `json:"activity_name"`
	CategoryUID  int           `json:"category_uid"`
	ClassUID     int           `json:"class_uid"`
	ClassName    string        `json:"class_name"`
	TypeUID      int           `json:"type_uid"`
	SeverityID   int           `json:"severity_id"`
	Time         int64         `json:"time"` // milliseconds
	Message      string        `json:"message"`
	StatusID     int           `json:"status_id"`
	StatusCode   string        `json:"status_code,omitempty"`
	Metadata     ocsfMetadata  `json:"metadata"`
	RawData      string        `json:"raw_data"`
	Unmapped     *ocsfUnmapped `json:"unmapped,omitempty"`

	ActionID      *int           `json:"action_id,omitempty"` // profile security_control
	DispositionID int            `json:"disposition_id,omitempty"`
	Policy        *ocsfObject    `json:"policy,omitempty"`
	Context       *ocsfContext   `json:"message_context,omitempty"` // profile ai_operation
	Actor         *ocsfActor     `json:"actor,omitempty"`
	API           *ocsfAPI       `json:"api,omitempty"`
	SrcEndpoint   *ocsfObject    `json:"src_endpoint,omitempty"`
	Resources     []ocsfObject   `json:"resources,omitempty"`
	User          *ocsfObject    `json:"user,omitempty"`
	Privileges    []string       `json:"privileges,omitempty"`
	Entity        *ocsfEntity    `json:"entity,omitempty"`
	Device        *ocsfDevice    `json:"device,omitempty"`
	Process       *ocsfProcess   `json:"process,omitempty"`
	App           *ocsfProduct   `json:"app,omitempty"`
	FindingInfo   *ocsfFinding   `json:"finding_info,omitempty"`
	Evidences     []ocsfArtifact `json:"evidences,omitempty"`
	LogName       string         `json:"log_name,omitempty"`
	LogTypeID     int            `json:"log_type_id,omitempty"`
}

type ocsfMetadata struct {
	Version        string      `json:"version"`
	Product        ocsfProduct `json:"product"`
	UID            string      `json:"uid"` // log and index: the same for the same event
	LogName        string      `json:"log_name"`
	Sequence       uint64      `json:"sequence"`
	EventCode      string      `json:"event_code"`
	CorrelationUID string      `json:"correlation_uid,omitempty"` // the run
	Profiles       []string    `json:"profiles,omitempty"`
}

type ocsfProduct struct {
	Name       string `json:"name"`
	VendorName string `json:"vendor_name"`
}

// An ocsfObject is one of the many objects that name something.
type ocsfObject struct {
	UID  string `json:"uid,omitempty"`
	Name string `json:"name,omitempty"`
	Type string `json:"type,omitempty"`
}

type ocsfActor struct {
	AppName string      `json:"app_name,omitempty"`
	Session *ocsfObject `json:"session,omitempty"`
	User    *ocsfObject `json:"user,omitempty"`
}

type ocsfAPI struct {
	Operation string      `json:"operation"`
	Request   *ocsfObject `json:"request,omitempty"`
	Service   *ocsfObject `json:"service,omitempty"`
}

type ocsfContext struct {
	RoleID  int        `json:"ai_role_id"`
	UID     string     `json:"uid,omitempty"`
	Service ocsfObject `json:"service"`
}

type ocsfEntity struct {
	UID    string `json:"uid,omitempty"`
	Name   string `json:"name,omitempty"`
	TypeID int    `json:"type_id"`
	Type   string `json:"type"`
}

type ocsfDevice struct {
	TypeID int    `json:"type_id"`
	Name   string `json:"name"`
}

type ocsfProcess struct {
	UID     string `json:"uid"`
	Sandbox string `json:"sandbox"`
}

type ocsfFinding struct {
	UID      string       `json:"uid"`
	Title    string       `json:"title"`
	Analytic ocsfAnalytic `json:"analytic"`
}

type ocsfAnalytic struct {
	UID    string `json:"uid"`
	TypeID int    `json:"type_id"`
}

type ocsfArtifact struct {
	Actor *ocsfActor `json:"actor"`
	API   *ocsfAPI   `json:"api"`
}

// ocsfUnmapped holds what has no place in the schema.
type ocsfUnmapped struct {
	LeafHash string            `json:"leaf_hash"` // RFC 6962, of raw_data
	Fields   map[string]string `json:"fields,omitempty"`
}

// Values of enumerations, the same in every class that has them.
const (
	unknownID, otherID = 0, 99

	severityInfo, severityLow, severityMedium, severityHigh = 1, 2, 3, 4
	statusSuccess, statusFailure                            = 1, 2
	actionAllowed, actionDenied                             = 1, 2
	dispositionAllowed, dispositionBlocked                  = 1, 2
	dispositionApproved, dispositionDelayed                 = 8, 14
	dispositionRevoked, dispositionQuarantined              = 24, 3
)

// ocsf maps an event to the class that fits it. What an event has no class for, it
// says in unmapped; the whole of it is in raw_data.
func ocsf(v *View) *ocsfEvent {
	l := v.Leaf
	e := &ocsfEvent{
		SeverityID: severityInfo, Time: l.Time.UnixMilli(), StatusCode: string(l.Reason), RawData: string(v.Raw),
		Message: strings.Join(strings.Fields(strings.Join([]string{string(l.Class), string(l.Phase), string(l.Kind), l.Tool, string(l.Reason)}, " ")), " "),
		Metadata: ocsfMetadata{
			Version: ocsfVersion, Product: ocsfProduct{"Vault", "Pilox"}, UID: eventUID(l), LogName: l.Log, Sequence: l.Index,
			EventCode: eventType(l), CorrelationUID: string(l.Run), Profiles: []string{"security_control"},
		},
		Unmapped: &ocsfUnmapped{LeafHash: v.Hash.String()},
	}
	for _, f := range v.Fields {
		if e.Unmapped.Fields == nil {
			e.Unmapped.Fields = map[string]string{}
		}
		e.Unmapped.Fields[f.Name] = f.Value
	}
	if !l.Policy.IsZero() {
		e.Policy = &ocsfObject{UID: l.Policy.String()}
	}
	switch l.Class {
	case vault.ClassCall:
		e.call(v)
	case vault.ClassTask:
		e.task(v)
	case vault.ClassApproval:
		e.approval(v)
	case vault.ClassRevocation:
		e.privileges(v, 2, "Revoke Privileges")
		e.SeverityID, e.StatusID = severityMedium, statusSuccess
		e.act(actionDenied, dispositionRevoked)
	case vault.ClassServer:
		e.server(v)
	case vault.ClassDaemon:
		e.daemon(v)
	case vault.ClassErasure:
		e.is(1, 1008, "Event Log Activity", 2, "Delete")
		e.Actor = actor(v)
		e.LogName, e.LogTypeID = l.Log, 2 // application
		e.SeverityID, e.StatusID = severityMedium, statusSuccess
		if l.Phase == vault.PhaseOpened {
			e.StatusID = unknownID // ordered, and not done yet
		}
	case vault.ClassRecovery: // a log that follows one that could not go on
		e.is(1, 1008, "Event Log Activity", 6, "Start")
		e.Actor = actor(v)
		e.LogName, e.LogTypeID = l.Log, 2 // application
		e.SeverityID, e.StatusID = severityHigh, statusSuccess
	case vault.ClassAccess:
		e.api(v)
		e.SeverityID, e.StatusID = severityLow, statusFailure
		e.act(actionDenied, dispositionBlocked)
	}
	return e
}

// is sets the class and the activity. OCSF computes the type from them.
func (e *ocsfEvent) is(category, class int, name string, activity int, activityName string) {
	e.CategoryUID, e.ClassUID, e.ClassName = category, class, name
	e.ActivityID, e.ActivityName = activity, activityName
	e.TypeUID = class*100 + activity
}

// act sets what the profile security_control says.
func (e *ocsfEvent) act(action, disposition int) { e.ActionID, e.DispositionID = &action, disposition }

// eventUID is the same for the same event, so that a receiver can drop what it has
// twice.
func eventUID(l *evidence.Leaf) string { return l.Log + "#" + strconv.FormatUint(l.Index, 10) }

// actor is whoever an event is about, as far as it may be said.
func actor(v *View) *ocsfActor {
	a := &ocsfActor{AppName: "pvault"}
	if v.Leaf.Run != "" {
		a = &ocsfActor{Session: &ocsfObject{UID: string(v.Leaf.Run)}}
	}
	if f, ok := v.field("caller", "approver", "by", "agent", "principal"); ok {
		a.User = &ocsfObject{UID: f.Value}
	}
	return a
}

// call is the life of one call.
func (e *ocsfEvent) call(v *View) {
	l := v.Leaf
	switch {
	case l.Kind == vault.KindExec:
		e.exec(v)
	case detected(l):
		e.finding(v)
	default:
		e.api(v)
	}
	switch l.Phase {
	case vault.PhaseRefused:
		e.StatusID = statusFailure
		e.SeverityID = max(e.SeverityID, severityLow)
		e.act(actionDenied, dispositionBlocked)
	case vault.PhaseAsked:
		e.act(otherID, dispositionDelayed)
	case vault.PhaseIntent, vault.PhaseReleased:
		e.act(actionAllowed, dispositionAllowed)
	case vault.PhaseDone:
		e.StatusID = statusSuccess
		e.act(actionAllowed, dispositionAllowed)
		if l.Reason != "" { // it ran, and what came back was held back
			e.SeverityID = severityMedium
			e.act(actionAllowed, dispositionQuarantined)
		}
	case vault.PhaseFailed, vault.PhaseCancelled:
		e.StatusID, e.SeverityID = statusFailure, severityLow
		e.act(actionAllowed, dispositionAllowed)
	case vault.PhaseUnknown:
		e.SeverityID = severityMedium
		e.act(actionAllowed, dispositionAllowed)
	case vault.PhaseOpened, vault.PhaseClosed, vault.PhaseNoted:
		e.act(actionAllowed, dispositionAllowed)
	}
	if e.ClassUID == 2004 {
		e.StatusID = 1 // new: a finding has a life of its own
	}
}

// detected reports whether a call was stopped for what was found, and not for what
// it may not do.
func detected(l *evidence.Leaf) bool {
	return (l.Phase == vault.PhaseRefused || l.Phase == vault.PhaseAsked) &&
		(strings.HasPrefix(string(l.Reason), "flow.") || l.Reason == vault.CodeScan || l.Reason == vault.CodeToolQuarantined)
}

func (e *ocsfEvent) api(v *View) {
	l := v.Leaf
	activity, name := otherID, "Call"
	if l.Kind == vault.KindResource || l.Kind == vault.KindPrompt {
		activity, name = 2, "Read"
	}
	e.is(6, 6003, "API Activity", activity, name)
	e.Actor, e.API = actor(v), api(l)
	e.SrcEndpoint = &ocsfObject{Name: "agent", UID: string(l.Run)}
	if s := service(l); s != nil {
		e.Resources = []ocsfObject{{UID: s.UID, Name: l.Tool, Type: string(l.Kind)}}
	}
	role := 4 // agent
	if l.Phase.Closes() || l.Phase == vault.PhaseReleased {
		role = 3 // tool
	}
	if l.Kind != "" {
		e.Metadata.Profiles = append(e.Metadata.Profiles, "ai_operation")
		e.Context = &ocsfContext{RoleID: role, UID: l.Call, Service: ocsfObject{Name: string(l.Kind)}}
	}
}

func api(l *evidence.Leaf) *ocsfAPI {
	a := &ocsfAPI{Operation: l.Tool, Service: service(l)}
	if a.Operation == "" {
		a.Operation = string(l.Kind) // whom or where such a call reaches is a sensitive field
	}
	if a.Operation == "" {
		a.Operation = string(l.Class)
	}
	if l.Call != "" {
		a.Request = &ocsfObject{UID: l.Call}
	}
	return a
}

// service is the server that a call is for, nil for kinds without one.
func service(l *evidence.Leaf) *ocsfObject {
	if l.Server.IsZero() {
		return nil
	}
	return &ocsfObject{UID: l.Server.String()}
}

// exec is a program that starts or ends in a sandbox. Which of the two stands in a
// sensitive field.
func (e *ocsfEvent) exec(v *View) {
	l := v.Leaf
	e.is(1, 1007, "Process Activity", otherID, "Run")
	e.Actor = actor(v)
	e.Device = &ocsfDevice{Name: l.Log, TypeID: 1} // server
	e.Process = &ocsfProcess{UID: eventUID(l), Sandbox: "grade " + l.Grade.String()}
	e.Metadata.Profiles = append(e.Metadata.Profiles, "host")
}

func (e *ocsfEvent) finding(v *View) {
	l := v.Leaf
	e.is(2, 2004, "Detection Finding", 1, "Create")
	e.SeverityID = severityHigh
	e.FindingInfo = &ocsfFinding{UID: eventUID(l), Title: string(l.Reason), Analytic: ocsfAnalytic{UID: string(l.Reason), TypeID: 1}} // a rule
	if l.Class == vault.ClassCall {
		e.Evidences = []ocsfArtifact{{Actor: actor(v), API: api(l)}}
	}
	if s := service(l); s != nil {
		e.Resources = []ocsfObject{{UID: s.UID, Name: l.Tool, Type: string(l.Kind)}}
	}
}

// privileges is authority that is given or taken.
func (e *ocsfEvent) privileges(v *View, activity int, name string) {
	l := v.Leaf
	e.is(3, 3005, "User Access Management", activity, name)
	e.Actor = actor(v)
	e.User = &ocsfObject{Name: "agent"}
	if f, ok := v.field("agent", "principal"); ok {
		e.User = &ocsfObject{UID: f.Value}
	}
	e.Privileges = []string{"task"}
	if l.Run != "" {
		e.Resources = []ocsfObject{{UID: string(l.Run), Type: "task"}}
	}
}

func (e *ocsfEvent) task(v *View) {
	l := v.Leaf
	switch {
	case l.Phase == vault.PhaseOpened:
		e.privileges(v, 1, "Assign Privileges")
		e.act(actionAllowed, dispositionAllowed)
	case l.Phase == vault.PhaseClosed:
		e.privileges(v, 2, "Revoke Privileges")
		e.act(actionAllowed, dispositionRevoked)
	case l.Verdict == vault.Deny: // its autonomy was lowered
		e.privileges(v, 2, "Revoke Privileges")
		e.SeverityID = severityMedium
		e.act(actionDenied, dispositionRevoked)
	default:
		e.privileges(v, otherID, "Note")
		e.act(actionAllowed, dispositionAllowed)
	}
	e.StatusID = statusSuccess
}

// approval is a person's answer: it gives authority for one call, or does not.
func (e *ocsfEvent) approval(v *View) {
	l := v.Leaf
	e.privileges(v, 1, "Assign Privileges")
	e.StatusID = statusSuccess
	e.act(actionAllowed, dispositionApproved)
	if l.Verdict != vault.Allow {
		e.privileges(v, otherID, "Deny Privileges")
		e.act(actionDenied, dispositionBlocked)
	}
	e.Privileges = []string{"call"}
	if l.Call != "" {
		e.Resources = append(e.Resources, ocsfObject{UID: l.Call, Name: l.Tool, Type: "call"})
	}
}

// server is a change of what is registered. One that nobody reviewed is a finding.
func (e *ocsfEvent) server(v *View) {
	l := v.Leaf
	if l.Reason == vault.CodeToolQuarantined {
		e.finding(v)
		e.StatusID = 1 // new
		e.act(actionDenied, dispositionQuarantined)
		return
	}
	e.is(3, 3004, "Entity Management", 3, "Update")
	e.Actor = actor(v)
	e.Entity = &ocsfEntity{UID: l.Server.String(), TypeID: otherID, Type: "MCP server"}
	e.StatusID = statusSuccess
}

func (e *ocsfEvent) daemon(v *View) {
	l := v.Leaf
	e.StatusID = statusSuccess
	switch l.Phase {
	case vault.PhaseOpened:
		e.is(6, 6002, "Application Lifecycle", 3, "Start")
		e.App = &ocsfProduct{"Vault", "Pilox"}
	case vault.PhaseClosed:
		e.is(6, 6002, "Application Lifecycle", 4, "Stop")
		e.App = &ocsfProduct{"Vault", "Pilox"}
	default:
		e.is(3, 3004, "Entity Management", 3, "Update")
		e.Actor = actor(v)
		e.Entity = &ocsfEntity{Name: "policy", TypeID: 5, Type: "Policy"}
	}
}
