package process

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The size of the root: it holds mount points and nothing else, and is read-only
// once they are made.
const rootOptions = "size=1m,nr_inodes=4k,mode=0755"

// openBeneath opens p for its identity only and refuses a symbolic link in any
// place: inside a writable mount, a guest of an earlier run may have left one.
func openBeneath(dir int, p string) (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(dir, p, &how)
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// cloneMount returns a detached copy of the mount tree at host, stripped of what
// a guest has no use for.
func cloneMount(host string, v view) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, host, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return -1, fmt.Errorf("clone mount of %s: %w", host, err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID, Propagation: unix.MS_PRIVATE}
	switch {
	case v.Device: // a device node on a nodev mount does not open
		attr.Attr_set |= unix.MOUNT_ATTR_NOEXEC
	case v.Writable:
		attr.Attr_set |= unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	default:
		attr.Attr_set |= unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("restrict mount of %s: %w", host, err)
	}
	return fd, nil
}

// buildRoot replaces the root of this mount namespace by an empty one that holds
// the views and a private /tmp, and makes it read-only.
func buildRoot(views []view, tmpSize int64) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// Clone everything first: the new root hides a directory of the old one.
	for i := range views {
		v := &views[i]
		if v.File != 0 {
			continue
		}
		fd, err := cloneMount(v.Host, *v)
		if err != nil {
			return err
		}
		v.File = fd
	}
	base, err := mountRoot()
	if err != nil {
		return err
	}
	// Parents before children.
	slices.SortStableFunc(views, func(a, b view) int { return strings.Compare(a.Guest, b.Guest) })
	root, err := unix.Open(base, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open new root: %w", err)
	}
	defer unix.Close(root)
	// Before the views: one below /tmp has its place in the private one.
	if err := unix.Mkdirat(root, "tmp", 0o700); err != nil {
		return fmt.Errorf("make /tmp: %w", err)
	}
	opts := fmt.Sprintf("size=%d,nr_inodes=%d,mode=0700", tmpSize, max(1024, tmpSize/4096))
	if err := unix.Mount("tmp", base+"/tmp", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, opts); err != nil {
		return fmt.Errorf("mount /tmp: %w", err)
	}
	for _, v := range views {
		if err := attach(root, v, views); err != nil {
			return fmt.Errorf("show %s: %w", v.Guest, err)
		}
	}
	return pivot(base)
}

func mountRoot() (string, error) {
	var errs []error
	for _, base := range []string{"/tmp", "/proc"} {
		err := unix.Mount("root", base, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, rootOptions)
		if err == nil {
			return base, nil
		}
		errs = append(errs, fmt.Errorf("mount new root on %s: %w", base, err))
	}
	return "", errors.Join(errs...)
}

// pivot makes base the root, drops the old one and closes the new one for writing.
func pivot(base string) error {
	if err := unix.Chdir(base); err != nil {
		return fmt.Errorf("enter new root: %w", err)
	}
	// With "." twice the old root ends up on top of the new one; see pivot_root(2).
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("drop old root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOEXEC}
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", 0, &attr); err != nil {
		return fmt.Errorf("make root read-only: %w", err)
	}
	return nil
}

// attach moves v onto its place below root, making the place if that is in the
// new root itself. Inside another view it has to exist: making it would write to
// the host.
func attach(root int, v view, all []view) error {
	inside := slices.ContainsFunc(all, func(o view) bool {
		return o.Guest != v.Guest && strings.HasPrefix(v.Guest, o.Guest+"/")
	})
	rel := strings.TrimPrefix(v.Guest, "/")
	if !inside {
		if err := makePlace(root, rel, v.IsDir); err != nil {
			return err
		}
	}
	at, err := openBeneath(root, rel)
	if err != nil {
		if inside {
			return fmt.Errorf("it lies in another mount and does not exist there: %w", err)
		}
		return err
	}
	defer unix.Close(at)
	if err := unix.MoveMount(v.File, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	unix.Close(v.File)
	return nil
}

func makePlace(root int, rel string, dir bool) error {
	parts := strings.Split(rel, "/")
	for i := range parts {
		p := path.Join(parts[:i+1]...)
		var err error
		if i == len(parts)-1 && !dir {
			var fd int
			if fd, err = unix.Openat(root, p, unix.O_CREAT|unix.O_EXCL|unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o444); err == nil {
				unix.Close(fd)
			}
		} else {
			err = unix.Mkdirat(root, p, 0o755)
		}
		if err != nil && err != unix.EEXIST {
			return fmt.Errorf("make mount point /%s: %w", p, err)
		}
	}
	return nil
}
