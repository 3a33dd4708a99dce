package unitdir

// Dropins lists the drop-in files of a unit in the order in which they apply.
func Dropins(paths []string, name string) []string {
	return newLoader(paths, Options{}).dropins(name)
}
