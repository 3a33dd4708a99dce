package token

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"testing/iotest"
)

func TestRoundTrip(t *testing.T) {
	random := bytes.NewReader(bytes.Repeat([]byte{255, 0, 35, 36, 251}, 40))
	made, err := New(random, []byte("a certificate"))
	if err != nil {
		t.Fatal(err)
	}
	read, err := Parse(" " + made.String() + "\n")
	if err != nil {
		t.Fatal(err)
	}
	if read != made {
		t.Errorf("read %+v, made %+v", read, made)
	}
	if len(made.ID) != 6 {
		t.Errorf("ID %q", made.ID)
	}
	if made.SecretName() != "bootstrap-token-"+made.ID {
		t.Errorf("secret name %q", made.SecretName())
	}
}

func TestParseRefuses(t *testing.T) {
	good := Prefix + ".abcdef.0123456789abcdef." + strings.Repeat("0", 64)
	if _, err := Parse(good); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"":                                 "is empty",
		"abcdef.0123456789abcdef":          "does not begin with",
		good[:len(good)-1]:                 "is damaged",
		strings.Replace(good, "a", "A", 1): "is damaged",
	} {
		if _, err := Parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%q): %v, want %q", text, err, want)
		}
	}
}

func TestParseLine(t *testing.T) {
	good := Prefix + ".abcdef.0123456789abcdef." + strings.Repeat("0", 64)
	const server = "https://fleet.example:6443"
	line, err := ParseLine(" " + good + "@" + server + "/\n")
	if err != nil || line.Server != server || line.Token.String() != good || line.String() != good+"@"+server {
		t.Errorf("%+v, %v", line, err)
	}
	for text, want := range map[string]string{
		"":                                "is empty",
		good:                              "names no server",
		good + "@":                        "is not the address of a server",
		good + "@http://fleet.example":    "is not the address of a server",
		good + "@https://fleet/x":         "is not the address of a server",
		good[1:] + "@" + server:           "does not begin with",
		good[:len(good)-1] + "@" + server: "is damaged",
	} {
		if _, err := ParseLine(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseLine(%q): %v, want %q", text, err, want)
		}
	}
}

func TestNewSaysThatRandomnessFailed(t *testing.T) {
	cause := errors.New("no entropy")
	if _, err := New(iotest.ErrReader(cause), nil); !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
}
