package console

import "golang.org/x/sys/unix"

// peerCred reads SO_PEERCRED (unix(7)).
func peerCred(fd int) (uid, pid int, err error) {
	c, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, 0, err
	}
	return int(c.Uid), int(c.Pid), nil
}
