package token

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Line is what a person carries from the server to a new host.
type Line struct {
	Token Token
	// Server is https://HOST:PORT.
	Server string
}

// String is the text form: the token, "@" and the server.
func (l Line) String() string { return l.Token.String() + "@" + l.Server }

// ParseLine reads the text form TOKEN@https://HOST:PORT.
func ParseLine(text string) (Line, error) {
	head, server, ok := strings.Cut(strings.TrimSpace(text), "@")
	parsed, err := Parse(head)
	if err != nil {
		return Line{}, err
	}
	if !ok {
		return Line{}, errors.New("the line names no server: it must be TOKEN@https://HOST:PORT, as 'legion token create' prints it (was it cut when copied?)")
	}
	if err := CheckServer(server); err != nil {
		return Line{}, err
	}
	return Line{Token: parsed, Server: strings.TrimSuffix(server, "/")}, nil
}

// CheckServer refuses what is no server's address.
func CheckServer(server string) error {
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
		return fmt.Errorf("%q is not the address of a server: it must be https://HOST:PORT", server)
	}
	return nil
}
