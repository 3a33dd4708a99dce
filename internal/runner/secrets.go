package runner

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"legion.dev/legion/internal/sandbox"
	"legion.dev/legion/internal/service"
)

// Credentials of systemd.exec(5), LoadCredential= and SetCredential=: files that
// only the service's user can read, in a directory that goes with the service.

// maxCredentials bounds those of one service together.
const maxCredentials = 1 << 20

// stores are where credentials are looked up that are given by name alone.
var stores = []string{"/etc/credstore", "/run/credstore", "/usr/local/lib/credstore", "/usr/lib/credstore"}

func credentialsDir(q *Request, b BaseDirs) string {
	if b == (BaseDirs{}) {
		b = DefaultBaseDirs()
	}
	return filepath.Join(b.Runtime, "credentials", q.title())
}

// makeCredentials writes the service's credentials, unless a command of the same
// life has done so, and returns their directory.
func (q *Request) makeCredentials(c *service.ExecContext, id identity) (string, *StartError) {
	dir := credentialsDir(q, q.Dirs)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	fail := func(what string, err error) (string, *StartError) {
		return "", &StartError{Stage: what, Err: err, Code: sandbox.CodeCredentials}
	}
	files := map[string][]byte{}
	for _, x := range c.Credentials {
		if x.Source == "" {
			if _, loaded := files[x.Name]; !loaded {
				files[x.Name] = x.Data
			}
		}
	}
	for _, x := range c.Credentials {
		if x.Source == "" {
			continue
		}
		err := load(x, files)
		if _, standard := files[x.Name]; errors.Is(err, fs.ErrNotExist) && standard {
			err = nil // SetCredential= is what counts then
		}
		if err != nil {
			return fail(fmt.Sprintf("load credential %q", x.Name), err)
		}
	}
	if err := writeCredentials(dir, files, id); err != nil {
		_ = os.RemoveAll(dir)
		return fail("write the credentials", err)
	}
	return dir, nil
}

// load reads a credential: a file, a socket, or all files of a directory.
func load(x service.Credential, files map[string][]byte) error {
	paths := []string{x.Source}
	if !filepath.IsAbs(x.Source) {
		paths = paths[:0]
		for _, s := range stores {
			paths = append(paths, filepath.Join(s, x.Source))
		}
	}
	for _, path := range paths {
		st, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return err
		case !st.IsDir():
			data, err := readCredential(path, st.Mode())
			files[x.Name] = data
			return err
		}
		entries, err := os.ReadDir(path)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if !e.Type().IsRegular() {
				continue
			}
			data, err := readCredential(filepath.Join(path, e.Name()), 0)
			if err != nil {
				return err
			}
			files[x.Name+"_"+e.Name()] = data
		}
		return nil
	}
	return fmt.Errorf("%w: %v", fs.ErrNotExist, paths)
}

func readCredential(path string, mode fs.FileMode) ([]byte, error) {
	var r io.ReadCloser
	var err error
	if mode&fs.ModeSocket != 0 {
		conn, err := net.DialTimeout("unix", path, 5*time.Second)
		if err != nil {
			return nil, err
		}
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		r = conn
	} else if r, err = os.Open(path); err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, maxCredentials+1))
}

func writeCredentials(dir string, files map[string][]byte, id identity) error {
	size := 0
	for _, data := range files {
		size += len(data)
	}
	if size > maxCredentials {
		return fmt.Errorf("they have more than %d bytes together", maxCredentials)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	give := func(path string) error {
		if id.credential == nil {
			return nil
		}
		return os.Lchown(path, int(id.uid), int(id.gid))
	}
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o400); err != nil {
			return err
		}
		if err := give(path); err != nil {
			return err
		}
	}
	if err := os.Chmod(dir, 0o500); err != nil {
		return err
	}
	return give(dir)
}

// RemoveCredentials removes those of a service that has stopped.
func RemoveCredentials(group, name string, b BaseDirs) error {
	q := Request{Group: group, Service: name}
	return os.RemoveAll(credentialsDir(&q, b))
}
