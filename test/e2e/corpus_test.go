package e2e

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"legion.dev/legion/internal/initd"
	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/unitdir"
	"legion.dev/legion/internal/unitfile"
)

// corpusTypes are the types of unit that are counted.
var corpusTypes = []string{".service", ".timer", ".socket", ".path", ".target"}

// corpusTally counts the files of one type.
type corpusTally struct {
	files, clean, refused, systemds              int
	honoured, ignored, unknown, wrong, directive int
}

// TestCorpus reads every unit that the packages of testdata/packages.txt ship.
// The packages are downloaded and unpacked, never installed; what is unpacked
// is kept below $LEGION_CORPUS_DIR, else the user's cache.
func TestCorpus(t *testing.T) {
	if os.Getenv("LEGION_E2E") == "" {
		t.Skip("set LEGION_E2E=1 (make e2e) to download Debian packages and read their units")
	}
	for _, program := range []string{"apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("there is no %s here", program)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	dir := os.Getenv("LEGION_CORPUS_DIR")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			cache = os.TempDir()
		}
		dir = filepath.Join(cache, "legion", "corpus")
	}
	packages := corpusPackages(t)
	missing := corpusFetch(ctx, t, dir, packages)
	if len(missing) == len(packages) {
		t.Skip("no package can be downloaded here")
	}
	tallies := map[string]*corpusTally{}
	for _, suffix := range corpusTypes {
		tallies[suffix] = &corpusTally{}
	}
	unclean := corpusRead(t, dir, packages, tallies)
	scripts := corpusScripts(t, dir, packages)
	corpusReport(t, tallies, scripts, unclean, len(packages), missing)
	if scripts.files == 0 || scripts.loaded != scripts.files {
		t.Errorf("%d of %d init.d scripts become units", scripts.loaded, scripts.files)
	}
	s := tallies[".service"]
	if s.files == 0 || 100*s.clean < 97*s.files {
		t.Errorf("%d of %d service files have every directive honoured or ignored with a reason, want 97 %%", s.clean, s.files)
	}
}

func corpusPackages(t *testing.T) []string {
	data, err := os.ReadFile("testdata/packages.txt")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(data))
}

// corpusFetch unpacks the packages that are not in dir yet, six at a time, and
// gives those that cannot be had.
func corpusFetch(ctx context.Context, t *testing.T, dir string, packages []string) (missing []string) {
	var mu sync.Mutex
	var all sync.WaitGroup
	slots := make(chan struct{}, 6)
	for _, p := range packages {
		all.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if err := corpusUnpack(ctx, filepath.Join(dir, p), p); err != nil {
				mu.Lock()
				defer mu.Unlock()
				t.Logf("%s is left out: %v", p, err)
				missing = append(missing, p)
			}
		})
	}
	all.Wait()
	slices.Sort(missing)
	return missing
}

// corpusUnpack downloads a package and keeps its units and init.d scripts.
func corpusUnpack(ctx context.Context, dir, name string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	work, err := os.MkdirTemp("", "legion-corpus-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	get := exec.CommandContext(ctx, "apt-get", "-o", "APT::Sandbox::User="+os.Getenv("USER"), "-q", "download", name)
	get.Dir = work
	if os.Geteuid() == 0 {
		get.Args[2] = "APT::Sandbox::User=root"
	}
	if out, err := get.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get download: %w: %s", err, lastLine(string(out)))
	}
	found, _ := filepath.Glob(filepath.Join(work, "*.deb"))
	if len(found) != 1 {
		return fmt.Errorf("apt-get download left %d files", len(found))
	}
	files := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", found[0])
	pipe, err := files.StdoutPipe()
	if err != nil {
		return err
	}
	if err := files.Start(); err != nil {
		return err
	}
	err = corpusExtract(pipe, filepath.Join(work, "files"))
	_, _ = io.Copy(io.Discard, pipe)
	if waited := files.Wait(); err == nil {
		err = waited
	}
	if err != nil {
		return fmt.Errorf("dpkg-deb: %w", err)
	}
	// Copied beside the place first: a cache that was cut off must not count.
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	half := dir + ".part"
	_ = os.RemoveAll(half)
	if err := os.CopyFS(half, os.DirFS(filepath.Join(work, "files"))); err != nil {
		return err
	}
	return os.Rename(half, dir)
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// corpusExtract writes the regular files that are units or scripts; a link is
// another name of a unit that is counted where it is.
func corpusExtract(r io.Reader, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := path.Clean("/" + h.Name)
		place := ""
		for _, from := range []string{"/lib/systemd/system/", "/usr/lib/systemd/system/", "/etc/init.d/"} {
			if rest, ok := strings.CutPrefix(name, from); ok && h.Typeflag == tar.TypeReg {
				place = filepath.Join(dir, path.Base(path.Clean(from)), rest)
			}
		}
		if place == "" {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(place), 0o755); err != nil {
			return err
		}
		data, err := io.ReadAll(io.LimitReader(tr, 8<<20))
		if err != nil {
			return err
		}
		if err := os.WriteFile(place, data, 0o644); err != nil {
			return err
		}
	}
}

// corpusRead compiles all units. unclean says of each service file that is not
// understood what is wrong with it.
func corpusRead(t *testing.T, dir string, packages []string, tallies map[string]*corpusTally) (unclean []string) {
	o := unitdir.Options{Options: unitdir.ThisMachine()}
	for _, p := range packages {
		units, _ := filepath.Glob(filepath.Join(dir, p, "system", "*"))
		for _, file := range units {
			tally := tallies[filepath.Ext(file)]
			if tally == nil || !unitfile.ValidName(filepath.Base(file), unitfile.AnyName) {
				continue
			}
			// Legion does the work of systemd's own units itself, or leaves it to
			// the machine; the directives of those are not counted.
			if p == "udev" || strings.HasPrefix(p, "systemd") {
				tally.systemds++
				continue
			}
			tally.files++
			if remarks := corpusUnit(t, file, o, tally); len(remarks) > 0 {
				unclean = append(unclean, fmt.Sprintf("%s: %s: %s", p, filepath.Base(file), strings.Join(remarks, "; ")))
			} else {
				tally.clean++
			}
		}
	}
	sort.Strings(unclean)
	return unclean
}

// corpusScriptTally counts the files of /etc/init.d.
type corpusScriptTally struct {
	files, headed, loaded, reload, supervised int
	// alone are those whose package has no unit file of that name.
	alone   int
	refused []string
}

// corpusScripts makes a unit of each script, also of those that a unit file goes
// before on a machine.
func corpusScripts(t *testing.T, dir string, packages []string) (tally corpusScriptTally) {
	none := t.TempDir()
	for _, p := range packages {
		found, _ := filepath.Glob(filepath.Join(dir, p, "init.d", "*"))
		for _, f := range found {
			if initd.Ignored(filepath.Base(f)) || filepath.Base(f) == "README" {
				continue
			}
			if err := os.Chmod(f, 0o755); err != nil { // others are no scripts
				t.Fatal(err)
			}
			tally.files++
			if corpusScript(f) {
				tally.headed++
			}
			name, err := initd.UnitName(filepath.Base(f))
			if err == nil {
				if _, missing := os.Stat(filepath.Join(dir, p, "system", name)); missing != nil {
					tally.alone++
				}
				err = corpusLoad(t, none, filepath.Dir(f), name, &tally)
			}
			if err != nil {
				tally.refused = append(tally.refused, fmt.Sprintf("%s: %s: %v", p, filepath.Base(f), err))
			}
		}
	}
	return tally
}

func corpusLoad(t *testing.T, none, dir, name string, tally *corpusScriptTally) (err error) {
	defer func() {
		if p := recover(); p != nil {
			t.Errorf("%s: %v\n%s", name, p, debug.Stack())
			err = fmt.Errorf("crash: %v", p)
		}
	}()
	g, err := unitdir.Find([]string{none}, name, unitdir.Options{Options: unitdir.ThisMachine(), Initd: dir})
	if err != nil {
		return err
	}
	if len(g.Services) != 1 || len(g.Services[0].Start) != 1 || len(g.Services[0].Stop) != 1 {
		return fmt.Errorf("it has no start or no stop command: %+v", g.Services)
	}
	for _, w := range g.Warnings {
		return errors.New(w.Text)
	}
	tally.loaded++
	if len(g.Services[0].Reload) > 0 {
		tally.reload++
	}
	if g.Services[0].PIDFile != "" {
		tally.supervised++
	}
	return nil
}

// corpusScript says whether a file of /etc/init.d has an LSB header.
func corpusScript(file string) bool {
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "### BEGIN INIT INFO") {
			return true
		}
	}
	return false
}

// corpusUnit loads one unit, as an instance where it is a template, and counts
// its directives. The remarks are what keeps it from being understood.
func corpusUnit(t *testing.T, file string, o unitdir.Options, tally *corpusTally) (remarks []string) {
	name := filepath.Base(file)
	defer func() {
		if p := recover(); p != nil {
			t.Errorf("%s: %v\n%s", file, p, debug.Stack())
			remarks = append(remarks, "crash")
		}
	}()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := unitfile.Parse(file, data)
	if err != nil {
		tally.refused++
		return []string{err.Error()}
	}
	for _, w := range parsed.Warnings {
		remarks = append(remarks, w.Text)
	}
	for _, e := range parsed.Entries {
		if strings.HasPrefix(e.Key, "X-") || strings.HasPrefix(e.Section, "X-") {
			continue
		}
		tally.directive++
		switch d := unitfile.Lookup(e.Section, e.Key); {
		case d == nil:
			tally.unknown++
			remarks = append(remarks, fmt.Sprintf("[%s] %s= is unknown", e.Section, e.Key))
		case d.Honoured():
			tally.honoured++
		default:
			tally.ignored++
		}
	}
	if instance, err := unitfile.ReplaceInstance(name, "instance"); err == nil {
		name = instance
	}
	g, err := unitdir.Find([]string{filepath.Dir(file)}, name, o)
	if err != nil {
		tally.refused++
		return append(remarks, err.Error())
	}
	return append(remarks, corpusWrong(g, tally)...)
}

// corpusWrong are the values that were not understood.
func corpusWrong(g service.Group, tally *corpusTally) (remarks []string) {
	for _, w := range g.Warnings {
		if _, text, ok := strings.Cut(w.Text, "= ignored: "); ok {
			tally.wrong++
			tally.honoured--
			remarks = append(remarks, w.Text[:len(w.Text)-len(text)]+text)
		}
	}
	return remarks
}

func corpusReport(t *testing.T, tallies map[string]*corpusTally, scripts corpusScriptTally, unclean []string, packages int, missing []string) {
	var b strings.Builder
	fmt.Fprintf(&b, "%d packages, %d of them cannot be downloaded\n\n", packages, len(missing))
	fmt.Fprintf(&b, "%-9s %6s %10s %8s %9s | %10s %9s %8s %7s %8s\n", "type", "files", "understood", "refused", "systemd's", "directives", "honoured", "ignored", "wrong", "unknown")
	for _, suffix := range corpusTypes {
		c := tallies[suffix]
		fmt.Fprintf(&b, "%-9s %6d %10d %8d %9d | %10d %9d %8d %7d %8d\n", suffix[1:], c.files, c.clean, c.refused, c.systemds, c.directive, c.honoured, c.ignored, c.wrong, c.unknown)
	}
	fmt.Fprintf(&b, "init.d    %6d scripts, %d with an LSB header, %d without a unit file beside them; as units: %d loaded, %d of them with a reload, %d with a pid file to supervise by; %d refused\n",
		scripts.files, scripts.headed, scripts.alone, scripts.loaded, scripts.reload, scripts.supervised, len(scripts.refused))
	fmt.Fprintf(&b, "\nsystemd's: units of systemd's own packages, not counted further\nunderstood: every directive honoured, or ignored with a reason. The others:\n")
	for _, u := range append(unclean, scripts.refused...) {
		fmt.Fprintf(&b, "  %s\n", u)
	}
	t.Log("\n" + b.String())
}
