package tool

import (
	"io/fs"
	"syscall"
)

// A fileStat tells whether a file is the one that was seen before. ctime is what
// makes it worth something: writing, chmod and rename set it, and only somebody
// who can set the clock can set it back.
type fileStat struct {
	Size         int64
	Mode         uint32
	Dev, Ino     uint64
	Mtime, Ctime int64 // ns
	OK           bool  // the platform gave all of it
}

func statOf(info fs.FileInfo) fileStat {
	s := fileStat{Size: info.Size(), Mode: uint32(info.Mode())}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.Dev, s.Ino = uint64(st.Dev), st.Ino
		s.Mtime, s.Ctime, s.OK = st.Mtim.Nano(), st.Ctim.Nano(), true
	}
	return s
}
