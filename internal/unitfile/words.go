package unitfile

import (
	"errors"
	"strings"
	"unicode/utf8"
)

// WordFlags say how words are taken from a text.
type WordFlags uint

// The flags of Words.Next.
const (
	// Relax: an unbalanced quote is fine, a trailing backslash is dropped.
	Relax WordFlags = 1 << iota
	// CUnescape resolves C escapes.
	CUnescape
	// UnescapeRelax keeps unknown escapes and a trailing backslash.
	UnescapeRelax
	// UnescapeSeparators resolves a backslash before a separator.
	UnescapeSeparators
	// KeepQuote: separators inside quotes do not split, quotes stay.
	KeepQuote
	// Unquote: the same, and quotes go.
	Unquote
	// DontCoalesce: each separator ends a word, which may be empty.
	DontCoalesce
	// RetainEscape: a backslash is an ordinary character.
	RetainEscape
	// RetainSeparators stops before the separator.
	RetainSeparators
)

// ErrQuoting is an unbalanced quote or a wrong escape.
var ErrQuoting = errors.New("unbalanced quote or invalid escape")

// Words takes words from a text, by the rules of systemd.syntax(7), "Quoting".
type Words struct {
	// Rest is what was not read yet.
	Rest string
	// ended: no further word will come, not even an empty one.
	ended bool
}

// word collects the word being read.
type word struct {
	*Words
	separators string
	flags      WordFlags
	text       []byte
}

func (w *word) has(f WordFlags) bool  { return w.flags&f != 0 }
func (w *word) separator(c byte) bool { return strings.IndexByte(w.separators, c) >= 0 }
func (w *word) peek() byte            { return w.Rest[0] }
func (w *word) skip(n int)            { w.Rest = w.Rest[n:] }
func (w *word) take()                 { w.text = append(w.text, w.Rest[0]); w.skip(1) }
func (w *word) end() (string, bool, error) {
	w.Rest, w.ended = "", true
	return string(w.text), true, nil
}

// Next returns the next word; ok is false when there is none. An empty
// separators means blanks. After an error Rest begins at the fault.
func (ws *Words) Next(separators string, flags WordFlags) (text string, ok bool, err error) {
	if ws.ended {
		return "", false, nil
	}
	if separators == "" {
		separators = blank
	}
	w := word{Words: ws, separators: separators, flags: flags}
	if !w.has(DontCoalesce) {
		ws.Rest = strings.TrimLeft(ws.Rest, separators)
		if ws.Rest == "" {
			ws.ended = true
			return "", false, nil
		}
	}
	var quote byte
	for w.Rest != "" {
		c := w.peek()
		switch {
		case c == '\\' && !w.has(RetainEscape):
			w.skip(1)
			if w.Rest == "" {
				return w.trailingBackslash(quote)
			}
			if err := w.escape(); err != nil {
				return "", false, err
			}
		case quote != 0:
			if c == quote {
				quote = 0
				if w.has(Unquote) {
					w.skip(1)
					continue
				}
			}
			w.take()
		case (c == '\'' || c == '"') && w.has(KeepQuote|Unquote):
			quote = c
			if w.has(Unquote) {
				w.skip(1)
			} else {
				w.take()
			}
		case w.separator(c):
			return w.separated()
		default:
			w.take()
		}
	}
	if quote != 0 && !w.has(Relax) {
		return "", false, ErrQuoting
	}
	return w.end()
}

// separated ends the word at a separator.
func (w *word) separated() (string, bool, error) {
	switch {
	case w.has(RetainSeparators):
	case w.has(DontCoalesce):
		w.skip(1)
	default:
		w.Rest = strings.TrimLeft(w.Rest, w.separators)
		w.ended = w.Rest == ""
	}
	return string(w.text), true, nil
}

func (w *word) trailingBackslash(quote byte) (string, bool, error) {
	switch {
	case w.has(UnescapeRelax) && (quote == 0 || w.has(Relax)):
		w.text = append(w.text, '\\')
	case !w.has(Relax):
		return "", false, ErrQuoting
	}
	return w.end()
}

// escape reads what follows a backslash.
func (w *word) escape() error {
	if !w.has(CUnescape | UnescapeSeparators) {
		w.take()
		return nil
	}
	if w.has(CUnescape) {
		if b, n := unescapeOne(w.Rest); n > 0 {
			w.text = append(w.text, b...)
			w.skip(n)
			return nil
		}
	}
	switch {
	case w.has(UnescapeSeparators) && (w.separator(w.peek()) || w.peek() == '\\'):
	case w.has(UnescapeRelax):
		w.text = append(w.text, '\\')
	default:
		return ErrQuoting
	}
	w.take()
	return nil
}

var simpleEscapes = map[byte]byte{
	'a': '\a', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t', 'v': '\v',
	'\\': '\\', '"': '"', '\'': '\'', 's': ' ',
}

// unescapeOne reads a C escape after its backslash; n is its length, 0 for no
// valid escape. A NUL is none.
func unescapeOne(s string) (b []byte, n int) {
	if s == "" {
		return nil, 0
	}
	if c, ok := simpleEscapes[s[0]]; ok {
		return []byte{c}, 1
	}
	number := func(from, digits int, base uint32) (uint32, bool) {
		if len(s) < from+digits {
			return 0, false
		}
		var v uint32
		for _, c := range []byte(s[from : from+digits]) {
			d := hexDigit(c)
			if d >= base {
				return 0, false
			}
			v = v*base + d
		}
		return v, v != 0
	}
	switch c := s[0]; {
	case c == 'x':
		if v, ok := number(1, 2, 16); ok {
			return []byte{byte(v)}, 3
		}
	case c == 'u' || c == 'U':
		digits := 4
		if c == 'U' {
			digits = 8
		}
		if v, ok := number(1, digits, 16); ok && unicodeValid(v) {
			return utf8.AppendRune(nil, rune(v)), 1 + digits
		}
	case c >= '0' && c <= '7':
		if v, ok := number(0, 3, 8); ok && v <= 255 {
			return []byte{byte(v)}, 3
		}
	}
	return nil, 0
}

func hexDigit(c byte) uint32 {
	switch {
	case c >= '0' && c <= '9':
		return uint32(c - '0')
	case c >= 'a' && c <= 'f':
		return uint32(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return uint32(c-'A') + 10
	default:
		return 255
	}
}

// unicodeValid refuses surrogates and what Unicode calls noncharacters.
func unicodeValid(v uint32) bool {
	switch {
	case v > utf8.MaxRune, v >= 0xD800 && v <= 0xDFFF, v >= 0xFDD0 && v <= 0xFDEF, v&0xFFFE == 0xFFFE:
		return false
	default:
		return true
	}
}

func validText(s string) bool {
	for i, r := range s {
		if r == utf8.RuneError {
			if _, n := utf8.DecodeRuneInString(s[i:]); n <= 1 {
				return false
			}
		}
		if !unicodeValid(uint32(r)) {
			return false
		}
	}
	return true
}

// NextUnit is Next as unit files use it: a word that is wrongly quoted is read
// once more with its unknown escapes kept.
func (ws *Words) NextUnit(separators string, flags WordFlags) (string, bool, error) {
	saved := *ws
	text, ok, err := ws.Next(separators, flags)
	if err == nil || flags&UnescapeRelax != 0 {
		return text, ok, err
	}
	*ws = saved
	return ws.Next(separators, flags|UnescapeRelax)
}

// Split takes all words of a value, quotes removed and C escapes resolved.
func Split(s string) ([]string, error) {
	ws := Words{Rest: s}
	var out []string
	for {
		w, ok, err := ws.NextUnit("", Unquote|CUnescape)
		if err != nil || !ok {
			return out, err
		}
		out = append(out, w)
	}
}
