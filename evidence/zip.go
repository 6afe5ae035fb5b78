package evidence

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A bundle is a zip file of the plainest kind: files stored one after the other,
// no compression, no times, no extra fields, no comment. Its bytes follow from
// the names and contents, so a reader can hold the whole file against what a
// writer would have made, and nothing can hide between the files.
// (PKWARE APPNOTE 6.3.10, sections 4.3.7, 4.3.12 and 4.3.16.)

// A zipFile is one stored file.
type zipFile struct {
	name   string
	size   int64
	crc    uint32
	offset int64 // of the content
}

const (
	zipLocalLen = 30
	zipDirLen   = 46
	zipEndLen   = 22
	// maxZipFiles is the number of names a bundle can have.
	maxZipFiles = 11
	// maxZipName is longer than any of them.
	maxZipName = 32
	// zipDate is 1 January 1980, the earliest date a zip can say.
	zipDate = 1<<5 | 1
)

// local appends the header before the content of f.
func (f *zipFile) local(b []byte) []byte {
	b = append(b, "PK\x03\x04"...)
	b = f.common(b)
	return append(b, f.name...)
}

// common appends the part that local headers and directory entries share:
// version 2.0, UTF-8 names, stored.
func (f *zipFile) common(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint16(b, 20)
	b = le.AppendUint16(b, 1<<11)
	b = le.AppendUint16(b, 0)
	b = le.AppendUint16(b, 0)
	b = le.AppendUint16(b, zipDate)
	b = le.AppendUint32(b, f.crc)
	b = le.AppendUint32(b, uint32(f.size))
	b = le.AppendUint32(b, uint32(f.size))
	b = le.AppendUint16(b, uint16(len(f.name)))
	return le.AppendUint16(b, 0)
}

// layout sets the offsets of files and returns the directory that ends the zip.
func layout(files []zipFile) (dir []byte, err error) {
	le := binary.LittleEndian
	at := int64(0)
	for i := range files {
		f := &files[i]
		f.offset = at + zipLocalLen + int64(len(f.name))
		if at = f.offset + f.size; f.size < 0 || at > MaxBundle {
			return nil, fmt.Errorf("bundle is larger than %d bytes", MaxBundle)
		}
	}
	for i := range files {
		f := &files[i]
		dir = append(dir, "PK\x01\x02"...)
		dir = le.AppendUint16(dir, 20)
		dir = f.common(dir)
		dir = append(dir, 0, 0, 0, 0, 0, 0) // comment, disk, internal attributes
		dir = le.AppendUint32(dir, 0)
		dir = le.AppendUint32(dir, uint32(f.offset-zipLocalLen-int64(len(f.name))))
		dir = append(dir, f.name...)
	}
	n := len(dir)
	dir = append(dir, "PK\x05\x06\x00\x00\x00\x00"...)
	dir = le.AppendUint16(dir, uint16(len(files)))
	dir = le.AppendUint16(dir, uint16(len(files)))
	dir = le.AppendUint32(dir, uint32(n))
	dir = le.AppendUint32(dir, uint32(at))
	return le.AppendUint16(dir, 0), nil
}

var errZip = errors.New("not a zip as Vault writes them")

// openZip reads the directory of a zip of size bytes and checks that every byte
// outside the contents is what layout makes of it.
func openZip(r io.ReaderAt, size int64) ([]zipFile, error) {
	if size > MaxBundle {
		return nil, fmt.Errorf("%d bytes, more than %d", size, MaxBundle)
	}
	if size < zipEndLen {
		return nil, errZip
	}
	le := binary.LittleEndian
	var end [zipEndLen]byte
	if err := readAt(r, end[:], size-zipEndLen); err != nil {
		return nil, err
	}
	n, dirLen, dirAt := int(le.Uint16(end[10:])), int64(le.Uint32(end[12:])), int64(le.Uint32(end[16:]))
	if n > maxZipFiles || dirLen > maxZipFiles*(zipDirLen+maxZipName) || dirAt+dirLen+zipEndLen != size {
		return nil, errZip
	}
	dir := make([]byte, dirLen+zipEndLen)
	if err := readAt(r, dir, dirAt); err != nil {
		return nil, err
	}
	files := make([]zipFile, 0, n)
	for rest := dir[:dirLen]; len(rest) > 0; {
		if len(rest) < zipDirLen {
			return nil, errZip
		}
		nameLen := int(le.Uint16(rest[28:]))
		if nameLen > maxZipName || len(rest) < zipDirLen+nameLen || len(files) == n {
			return nil, errZip
		}
		files = append(files, zipFile{
			name: string(rest[zipDirLen : zipDirLen+nameLen]),
			size: int64(le.Uint32(rest[24:])),
			crc:  le.Uint32(rest[16:]),
		})
		rest = rest[zipDirLen+nameLen:]
	}
	want, err := layout(files)
	if err != nil || !bytes.Equal(want, dir) {
		return nil, errZip
	}
	for i := range files {
		f := &files[i]
		want := f.local(nil)
		got := make([]byte, len(want))
		if err := readAt(r, got, f.offset-int64(len(want))); err != nil {
			return nil, err
		}
		if !bytes.Equal(want, got) {
			return nil, errZip
		}
	}
	return files, nil
}

// readAt fills b or fails; a ReaderAt may return io.EOF with a full read.
func readAt(r io.ReaderAt, b []byte, off int64) error {
	if n, err := r.ReadAt(b, off); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read bundle: %w", err)
	}
	return nil
}
