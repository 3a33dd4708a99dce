package service

// FileVariable is a variable that a file sets, in the form of package envfile.
type FileVariable struct {
	Name string `json:"name"`
	// Mark stands for the value in Environment, in the words of commands and in
	// the configuration of a container. It holds a zero byte, as no value can.
	Mark string `json:"mark"`
	// Path is below Dir and cannot lead out of it; Key is the name in the file.
	Dir  string `json:"dir"`
	Path string `json:"path"`
	Key  string `json:"key"`
	// Optional: without the file or the key the variable is not set.
	Optional bool `json:"optional,omitempty"`
}
