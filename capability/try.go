package capability

import "github.com/pilox/vault"

// Compile returns a test of arguments against named ones on their own, without a
// chain around them: bad is the pointer of the first that does not pass. It is for
// whoever writes a rule and wants to know what it lets through; no call is
// authorised by it. nil Args test nothing and pass nothing.
func (a Args) Compile(e *Engines) (test func(args vault.Args) (bad string, ok bool), err error) {
	o, err := compileArgs(a, "", 0, e)
	if err != nil {
		return nil, err
	}
	return func(args vault.Args) (string, bool) {
		if o == nil {
			return "", false
		}
		return o.check(args.Root(), "")
	}, nil
}

// Compile returns a test of one value. An absent value passes if the argument is
// optional.
func (a *Arg) Compile(e *Engines) (test func(v vault.Value) bool, err error) {
	n, err := compileArg(*a, "", 0, e)
	if err != nil {
		return nil, err
	}
	return func(v vault.Value) bool {
		if v.Kind() == vault.Absent {
			return a.Optional
		}
		_, ok := n.check(v, "")
		return ok
	}, nil
}
