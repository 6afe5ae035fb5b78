//go:build !linux

package tool

import "io/fs"

// A fileStat without ctime proves nothing, so OK stays false and every start
// reads the whole tree.
type fileStat struct {
	Size         int64
	Mode         uint32
	Dev, Ino     uint64
	Mtime, Ctime int64
	OK           bool
}

func statOf(info fs.FileInfo) fileStat {
	return fileStat{Size: info.Size(), Mode: uint32(info.Mode()), Mtime: info.ModTime().UnixNano()}
}
