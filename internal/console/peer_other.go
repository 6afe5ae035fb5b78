//go:build !linux && !darwin

package console

import "errors"

func peerCred(int) (uid, pid int, err error) { return 0, 0, errors.ErrUnsupported }
