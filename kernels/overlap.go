package kernels

import "strings"

// Overlap tells whether there is a text that two shell patterns (path.Match, without slashes) both match; one without wildcards is a
// pattern of its own text alone. A malformed pattern matches nothing.
func Overlap(a, b string) bool {
	x, ok := patternOf(a)
	y, ok2 := patternOf(b)
	if !ok || !ok2 {
		return false
	}
	// can[j] tells, for the i of the loop, whether what is left of x behind i and of y behind j overlaps.
	can, next := make([]bool, len(y)+1), make([]bool, len(y)+1)
	for i := len(x); i >= 0; i-- {
		for j := len(y); j >= 0; j-- {
			switch {
			case i == len(x) && j == len(y):
				can[j] = true
			case i < len(x) && x[i].star:
				can[j] = next[j] || j < len(y) && can[j+1]
			case j < len(y) && y[j].star:
				can[j] = can[j+1] || i < len(x) && next[j]
			default:
				can[j] = i < len(x) && j < len(y) && x[i].meets(y[j]) && next[j+1]
			}
		}
		can, next = next, can
	}
	return next[0]
}

// A piece of a pattern is a star, or one of a set of bytes.
type piece struct {
	star bool
	set  [4]uint64
}

func (p piece) meets(q piece) bool {
	for i := range p.set {
		if p.set[i]&q.set[i] != 0 {
			return true
		}
	}
	return false
}

func (p *piece) add(from, to byte) {
	for c := int(from); c <= int(to); c++ {
		p.set[c/64] |= 1 << (c % 64)
	}
}

// patternOf reads a pattern as path.Match does.
func patternOf(s string) (out []piece, ok bool) {
	for s != "" {
		c := s[0]
		s = s[1:]
		var p piece
		switch c {
		case '*':
			p.star = true
		case '?':
			p.add(0, 255)
		case '[':
			negated := strings.HasPrefix(s, "^")
			s = strings.TrimPrefix(s, "^")
			for n := 0; n == 0 || !strings.HasPrefix(s, "]"); n++ {
				from, rest, ok := edge(s)
				to := from
				if ok && strings.HasPrefix(rest, "-") {
					to, rest, ok = edge(rest[1:])
				}
				if !ok {
					return nil, false
				}
				p.add(from, to)
				s = rest
			}
			s = s[1:]
			if negated {
				for i := range p.set {
					p.set[i] = ^p.set[i]
				}
			}
		case '\\':
			if s == "" {
				return nil, false
			}
			c, s = s[0], s[1:]
			p.add(c, c)
		default:
			p.add(c, c)
		}
		out = append(out, p)
	}
	return out, true
}

// edge reads one end of a range.
func edge(s string) (c byte, rest string, ok bool) {
	if strings.HasPrefix(s, `\`) {
		s = s[1:]
	} else if s == "" || s[0] == '-' || s[0] == ']' {
		return 0, "", false
	}
	if len(s) < 2 { // something must follow
		return 0, "", false
	}
	return s[0], s[1:], true
}
