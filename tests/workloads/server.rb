# A server of HTTP/1.1 over TLS, or in plain text for "-" as certificate:
#
#     server.rb CERTIFICATE KEY
#
# Sends the number of bytes that a path like /bytes/100 ends with.

require 'json'
require 'webrick/https'

certificate, key = ARGV
settings = { BindAddress: '127.0.0.1', Port: 0, AccessLog: [], Logger: WEBrick::Log.new(File::NULL) }
if certificate != '-'
  settings[:SSLEnable] = true
  settings[:SSLCertificate] = OpenSSL::X509::Certificate.new(File.read(certificate))
  settings[:SSLPrivateKey] = OpenSSL::PKey.read(File.read(key))
end
server = WEBrick::HTTPServer.new(settings)
server.mount_proc('/') { |request, response| response.body = 'x' * request.path[/\d+/].to_i }
puts({ port: server.listeners.first.addr[1] }.to_json)
$stdout.flush
trap('TERM') { server.shutdown }
server.start
