# WEBrick's thread for each connection, which hands its calls to a pool of 16 threads and waits.
require 'net/http'
require 'webrick'

PORT, BACK_PORT = ARGV.map { |port| Integer(port) }
JOBS = Queue.new

def ask(path)
  back = Thread.current[:back] ||= begin
    http = Net::HTTP.new('127.0.0.1', BACK_PORT)
    # The default closes a connection that was idle for 2 seconds.
    http.keep_alive_timeout = 600
    http.start
  end
  back.get(path).body
end

16.times do
  Thread.new do
    loop do
      path, outcome = JOBS.pop
      body = ask(path)
      outcome&.push(body)
    end
  end
end

# Half of its calls in the pool, for which nobody waits.
Thread.new do
  (0..).each do |number|
    path = "/background/#{number}"
    number.odd? ? JOBS << [path, nil] : ask(path)
    sleep 0.05
  end
end

class Forward < WEBrick::HTTPServlet::AbstractServlet
  def do_GET(request, response)
    outcome = Queue.new
    JOBS << [request.path, outcome]
    response.body = outcome.pop
  end
end

server = WEBrick::HTTPServer.new(
  BindAddress: '127.0.0.1', Port: PORT, MaxClients: 512,
  AccessLog: [], Logger: WEBrick::Log.new(nil, 0)
)
# Head and body leave in writes of their own: without this each would wait 40 ms for an ACK.
server.listeners.each { |socket| socket.setsockopt(:TCP, :NODELAY, true) }
server.mount('/', Forward)
server.start
