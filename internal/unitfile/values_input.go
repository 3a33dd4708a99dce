package unitfile

import (
	"encoding/base64"
	"fmt"
	"strings"
)

// The setters of systemd.exec(5), "Logging and Standard Input/Output" and PATH.

func input(c *compiler, e Entry) error {
	s, err := c.expand(e.Value)
	if err != nil {
		return err
	}
	if p, ok := strings.CutPrefix(s, "file:"); ok {
		if p, err = cleanPath(p); err == nil {
			c.svc.Exec.StandardInput = "file:" + p
		}
		return err
	}
	if s != "null" && s != "" && s != "socket" && s != "data" {
		return fmt.Errorf("%q is not supported; the input is /dev/null", s)
	}
	c.svc.Exec.StandardInput = s
	return nil
}

// inputText adds a line to the data that commands read; the empty value takes
// all of it away.
func inputText(c *compiler, e Entry) error {
	if e.Value == "" {
		c.svc.Exec.InputData = nil
		return nil
	}
	text, err := c.expand(unescape(e.Value))
	if err == nil {
		c.svc.Exec.InputData = append(append(c.svc.Exec.InputData, text...), '\n')
	}
	return err
}

// unescape replaces C escapes; what is none stays as it is.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' {
			if text, n := unescapeOne(s[i+1:]); n > 0 {
				b.Write(text)
				i += n
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func inputData(c *compiler, e Entry) error {
	if e.Value == "" {
		c.svc.Exec.InputData = nil
		return nil
	}
	text := strings.TrimRight(strings.Join(strings.Fields(e.Value), ""), "=")
	data, err := base64.RawStdEncoding.DecodeString(text)
	if err != nil {
		return fmt.Errorf("it is not base64: %w", err)
	}
	c.svc.Exec.InputData = append(c.svc.Exec.InputData, data...)
	return nil
}

// searchPath adds directories that executables are looked for in.
func searchPath(c *compiler, e Entry) error {
	if e.Value == "" {
		c.svc.Exec.SearchPath = nil
		return nil
	}
	s, err := c.expand(e.Value)
	if err != nil {
		return err
	}
	var dirs []string
	for dir := range strings.SplitSeq(s, ":") {
		if dir, err = cleanPath(dir); err != nil {
			return err
		}
		dirs = append(dirs, dir)
	}
	c.svc.Exec.SearchPath = append(c.svc.Exec.SearchPath, dirs...)
	return nil
}
