// Package guest is the first process of a sandbox, whatever engine made it, and the tool's end of the socket to it.
//
// The first process gives up what it has, confines itself with a seccomp filter and resource limits, and then runs the
// commands that it's sent. It ends whatever a command leaves behind, and whatever holds more memory than is allowed. So two
// engines that give it the same root run the same build, and differ only in how they keep it apart from the host.
package guest
