package unitdir

// Dropins lists the drop-in files of a unit in the order in which they apply.
func Dropins(paths []string, name string) []string {
	l := newLoader(paths, Options{})
	l.scan()
	return l.dropins(name)
}
