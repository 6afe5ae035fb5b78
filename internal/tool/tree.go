package tool

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pilox/vault"
)

// Limits on an installed tree: a large server with all its dependencies has some
// 20,000 files and 200 MiB.
const (
	maxTreeFiles = 50_000
	maxTreeBytes = 512 << 20
	maxTreeDepth = 64 // npm nests dependencies; each level is two directories
)

// A Tree is an installed server: read-only files with one content digest, and
// what starts them. The zero Tree is none.
type Tree struct {
	Dir     string       `json:"dir,omitempty"`    // absolute
	Digest  vault.Digest `json:"digest,omitzero"`  // of the files, whatever their times and owners
	Runtime Runtime      `json:"runtime,omitzero"` // what executes the entry
	Entry   string       `json:"entry,omitempty"`  // file below Dir, slash-separated

	Interpreter       string       `json:"interpreter,omitempty"` // absolute path; "" with RuntimeExec
	InterpreterDigest vault.Digest `json:"interpreter_digest,omitzero"`

	Files int   `json:"files,omitempty"`
	Bytes int64 `json:"bytes,omitempty"`
}

// A Runtime says what executes the entry of a tree. The zero Runtime is nothing.
type Runtime string

// The runtimes.
const (
	RuntimeNode Runtime = "node" // JavaScript, by node
	RuntimeExec Runtime = "exec" // an ELF program of the tree itself
)

// IsZero reports whether t is no tree.
func (t Tree) IsZero() bool { return t == Tree{} }

// matches reports whether t is the tree that a registration needs.
func (t *Tree) matches(r Registration) error {
	if r.URL != "" {
		if !t.IsZero() {
			return errors.New("a url server has no tree")
		}
		return nil
	}
	switch {
	case t.Digest.IsZero() || !filepath.IsAbs(t.Dir):
		return errors.New("not installed")
	case t.Runtime != RuntimeNode && t.Runtime != RuntimeExec:
		return fmt.Errorf("unknown runtime %q", t.Runtime)
	case (t.Runtime == RuntimeNode) != (filepath.IsAbs(t.Interpreter) && !t.InterpreterDigest.IsZero()):
		return errors.New("the interpreter does not fit the runtime")
	case !filepath.IsLocal(t.Entry):
		return fmt.Errorf("entry %q lies outside the tree", t.Entry)
	}
	return nil
}

// A treeFile is one file system object of a tree.
type treeFile struct {
	path   string // slash-separated, below the root
	kind   string // dir, file, link
	exec   bool
	target string // of a link
	stat   fileStat
}

// A TreeError says which file of a tree is not acceptable and why.
type TreeError struct {
	Path string
	Why  string
}

func (e *TreeError) Error() string { return fmt.Sprintf("tree: %q: %s", e.Path, e.Why) }

// readTree lists the objects below root in the order of their paths. Only
// directories, regular files and links that stay inside are accepted.
func readTree(ctx context.Context, root *os.Root) ([]treeFile, error) {
	var files []treeFile
	var size int64
	err := fs.WalkDir(root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("read tree: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if p == "." {
			return nil
		}
		if len(files) >= maxTreeFiles {
			return &TreeError{p, fmt.Sprintf("more than %d files", maxTreeFiles)}
		}
		if strings.Count(p, "/") >= maxTreeDepth {
			return &TreeError{p, fmt.Sprintf("deeper than %d directories", maxTreeDepth)}
		}
		f, err := readTreeFile(root, p)
		if err != nil {
			return err
		}
		if size += f.stat.Size; f.kind == "file" && size > maxTreeBytes {
			return &TreeError{p, fmt.Sprintf("more than %d bytes in all", maxTreeBytes)}
		}
		files = append(files, f)
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(files, func(a, b treeFile) int { return cmp.Compare(a.path, b.path) })
	return files, nil
}

func readTreeFile(root *os.Root, p string) (treeFile, error) {
	info, err := root.Lstat(p)
	if err != nil {
		return treeFile{}, fmt.Errorf("read tree: %w", err)
	}
	f := treeFile{path: p, stat: statOf(info)}
	switch info.Mode().Type() {
	case fs.ModeDir:
		f.kind, f.stat.Size = "dir", 0
	case 0:
		f.kind, f.exec = "file", info.Mode()&0o111 != 0
	case fs.ModeSymlink:
		f.kind, f.stat.Size = "link", 0
		if f.target, err = root.Readlink(p); err != nil {
			return treeFile{}, fmt.Errorf("read tree: %w", err)
		}
		if path.IsAbs(f.target) || !filepath.IsLocal(path.Join(path.Dir(p), f.target)) {
			return treeFile{}, &TreeError{p, "link leads out of the tree"}
		}
		// Lexically inside is not enough: a/.. is not the root when a is a link.
		// Root follows the chain and refuses to leave.
		if _, err := root.Stat(p); err != nil {
			return treeFile{}, &TreeError{p, "link leads nowhere or out of the tree"}
		}
	default:
		return treeFile{}, &TreeError{p, "neither file, directory nor link"}
	}
	return f, nil
}

// digestFiles returns the content digest of a tree: Hash("tree") over one
// digest for each object below it, sorted by path. An object counts with its
// path, its type, whether it is executable, the SHA-256 of its content and the
// target of a link. Times and owners do not count.
func digestFiles(ctx context.Context, root *os.Root, files []treeFile) (vault.Digest, error) {
	leaves := make([][]byte, 0, len(files))
	for _, f := range files {
		if err := ctx.Err(); err != nil {
			return vault.Digest{}, err
		}
		var content vault.Digest
		if f.kind == "file" {
			var err error
			if content, err = digestFile(root, f); err != nil {
				return vault.Digest{}, err
			}
		}
		mode := []byte("-")
		if f.exec {
			mode = []byte("x")
		}
		leaf := vault.Hash("tree/file", []byte(f.path), []byte(f.kind), mode, content[:], []byte(f.target))
		leaves = append(leaves, leaf[:])
	}
	return vault.Hash("tree", leaves...), nil
}

// digestFile reads exactly the file that was listed: its size bounds the read.
func digestFile(root *os.Root, f treeFile) (vault.Digest, error) {
	r, err := root.Open(f.path)
	if err != nil {
		return vault.Digest{}, fmt.Errorf("digest tree: %w", err)
	}
	defer r.Close()
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(r, f.stat.Size+1))
	if err != nil {
		return vault.Digest{}, fmt.Errorf("digest tree: %w", err)
	}
	if n != f.stat.Size {
		return vault.Digest{}, &TreeError{f.path, "changed while it was read"}
	}
	return vault.Digest(h.Sum(nil)), nil
}

// digestProgram returns the SHA-256 of an interpreter.
func digestProgram(file string) (vault.Digest, error) {
	r, err := os.Open(file)
	if err != nil {
		return vault.Digest{}, fmt.Errorf("digest interpreter: %w", err)
	}
	defer r.Close()
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(r, maxTreeBytes+1))
	if err != nil {
		return vault.Digest{}, fmt.Errorf("digest interpreter: %w", err)
	}
	if n > maxTreeBytes {
		return vault.Digest{}, fmt.Errorf("digest interpreter: %s: larger than %d bytes", file, maxTreeBytes)
	}
	return vault.Digest(h.Sum(nil)), nil
}

// seal makes everything below root read-only: 0444 and 0555.
func seal(root *os.Root, files []treeFile) error {
	for i := range slices.Backward(files) { // children before their directory
		f := &files[i]
		mode := fs.FileMode(0o444)
		switch {
		case f.kind == "link":
			continue
		case f.kind == "dir" || f.exec:
			mode = 0o555
		}
		if err := root.Chmod(f.path, mode); err != nil {
			return fmt.Errorf("seal tree: %w", err)
		}
	}
	if err := root.Chmod(".", 0o555); err != nil {
		return fmt.Errorf("seal tree: %w", err)
	}
	return nil
}

// RemoveTree deletes an installed tree, read-only or not. A missing tree is no
// error.
func RemoveTree(dir string) error {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove tree: %w", err)
	}
	err = fs.WalkDir(root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = root.Chmod(p, 0o755)
		}
		return err
	})
	if err := errors.Join(err, root.Close()); err != nil {
		return fmt.Errorf("remove tree: %w", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove tree: %w", err)
	}
	return nil
}

// runtimeOf says what executes a file: node for JavaScript, itself for ELF. A
// script for another interpreter is refused, for nothing would pin that.
func runtimeOf(root *os.Root, entry string) (Runtime, error) {
	r, err := root.Open(entry)
	if err != nil {
		return "", fmt.Errorf("entry: %w", err)
	}
	defer r.Close()
	info, err := r.Stat()
	if err != nil {
		return "", fmt.Errorf("entry: %w", err)
	}
	if !info.Mode().IsRegular() {
		return "", &TreeError{entry, "entry is no file"}
	}
	head := make([]byte, 256)
	n, err := io.ReadFull(r, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", fmt.Errorf("entry: %w", err)
	}
	head = head[:n]
	line, _, _ := bytes.Cut(head, []byte("\n"))
	script := bytes.HasPrefix(line, []byte("#!"))
	switch ext := path.Ext(entry); {
	case bytes.HasPrefix(head, []byte("\x7fELF")):
		return RuntimeExec, nil
	case script && slices.ContainsFunc(bytes.Fields(line[2:]), func(w []byte) bool { return path.Base(string(w)) == "node" }):
		return RuntimeNode, nil
	case !script && (ext == ".js" || ext == ".mjs" || ext == ".cjs"):
		return RuntimeNode, nil
	}
	return "", &TreeError{entry, "entry is neither JavaScript nor an ELF program"}
}
